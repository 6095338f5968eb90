"""Recordings of Isaac Lab, written by the wheel's own handler and in its layout, whole and damaged."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from lab_python import needs_lab
from lab_recordings import ACTION_DIM, ENV_NAME, IMAGE, Demo, demo, record_with_handler, write_recording
from regrasp.data.isaaclab_hdf5 import EpisodeError, RecordedEpisode, RecorderFile
from regrasp.errors import UserError

DEMOS = [demo(seed, length=4 + seed % 3, success=seed != 2) for seed in range(12)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("written") / "demos.hdf5", DEMOS)


@pytest.fixture(scope="module", params=["layout", pytest.param("handler", marks=needs_lab)])
def original(request: pytest.FixtureRequest, written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording as it is written here, and as Isaac Lab itself writes it."""
    if request.param == "layout":
        return written
    path = tmp_path_factory.mktemp("handler") / "demos.hdf5"
    record_with_handler({written: path})
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copy(original, tmp_path / "demos.hdf5"))


def read_one(folder: Path, episode: Demo, *keys: str) -> tuple[RecordedEpisode, list[np.ndarray]]:
    """Description and observations of a recording's only episode."""
    with RecorderFile(write_recording(folder / "one.hdf5", [episode])) as file:
        described = file.describe("demo_0")
        return described, [file.read_observation(described, key) for key in keys]


def tree(path: Path) -> dict[str, tuple]:
    """Everything in a file: kind, dtype, values and attributes by path."""
    found: dict[str, tuple] = {}

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        values = (node.dtype, node.compression, node[()].tobytes()) if isinstance(node, h5py.Dataset) else ()
        found[name] = (values, {key: str(value) for key, value in node.attrs.items()})

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@needs_lab
def test_the_layout_is_the_one_that_isaac_labs_handler_writes(written: Path, tmp_path: Path) -> None:
    record_with_handler({written: tmp_path / "handler.hdf5"})
    assert tree(written) == tree(tmp_path / "handler.hdf5")


def test_everything_recorded_is_found(original: Path) -> None:
    with RecorderFile(original) as file:
        assert file.env_name == ENV_NAME
        assert file.steps_per_second == pytest.approx(20.0)
        assert file.episode_names == [f"demo_{i}" for i in range(12)], "by number, not by spelling"
        for name, source in zip(file.episode_names, DEMOS, strict=True):
            episode = file.describe(name)
            assert (episode.num_steps, episode.action_dim) == source["actions"].shape
            assert episode.success is source.success
            terms = ("eef_pos", "eef_quat", "gripper_pos", "goal", "table_cam", "wrist_cam")
            assert episode.observations.keys() == {
                *(f"policy/{term}" for term in terms),
                "datagen_info/eef_pose/franka",
            }
            assert np.array_equal(file.read_actions(episode), source["actions"])
            for term in terms:
                assert np.array_equal(file.read_observation(episode, f"policy/{term}"), source[f"obs/{term}"])


def test_a_camera_is_told_from_a_vector(original: Path) -> None:
    with RecorderFile(original) as file:
        observations = file.describe("demo_0").observations
    camera, vector = observations["policy/table_cam"], observations["policy/eef_quat"]
    assert (camera.shape, camera.dtype, camera.is_camera) == ((*IMAGE, 3), "uint8", True)
    assert (vector.shape, vector.dtype, vector.is_camera) == ((4,), "float32", False)
    assert not observations["datagen_info/eef_pose/franka"].is_camera


def test_states_after_the_action_are_no_observation(tmp_path: Path) -> None:
    episode, _ = read_one(tmp_path, demo())
    assert not any("joint_position" in key or "processed" in key for key in episode.observations)


def test_a_group_recorded_as_one_vector_has_its_name(tmp_path: Path) -> None:
    whole = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    episode, (read,) = read_one(tmp_path, Demo({"actions": np.zeros((4, 2), np.float32), "obs": whole}), "policy")
    assert episode.observations.keys() == {"policy"}
    assert np.array_equal(read, whole)


@pytest.mark.parametrize("path", ["obs/camera_images/front", "camera_images/front", "obs/policy/front"])
def test_groups_of_other_recorder_terms_are_found(tmp_path: Path, path: str) -> None:
    images = np.full((4, 2, 2, 3), 9, np.uint8)
    key = path.removeprefix("obs/")
    episode, (read,) = read_one(tmp_path, Demo({"actions": np.zeros((4, 2), np.float32), path: images}), key)
    assert episode.observations.keys() == {key}
    assert np.array_equal(read, images)


def test_a_row_after_the_last_action_is_left_out(tmp_path: Path) -> None:
    longer = np.arange(21.0, dtype=np.float32).reshape(7, 3)
    episode, (read,) = read_one(tmp_path, demo().but({"obs/eef_pos": longer}), "policy/eef_pos")
    episode.check_rows("policy/eef_pos")
    assert np.array_equal(read, longer[:6])


@pytest.mark.parametrize("rows", [5, 8])
def test_rows_without_an_action_are_noticed(tmp_path: Path, rows: int) -> None:
    episode, _ = read_one(tmp_path, demo().but({"obs/eef_pos": np.zeros((rows, 3), np.float32)}))
    with pytest.raises(EpisodeError, match=f"obs/eef_pos has {rows} rows for 6 actions"):
        episode.check_rows("policy/eef_pos")
    episode.check_rows("policy/eef_quat")


COLOURS = np.random.default_rng(1).integers(0, 256, (6, 4, 6, 3), np.uint8)
OPAQUE = np.full((6, 4, 6, 1), 255, np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        np.concatenate([COLOURS, OPAQUE], -1),
        COLOURS.astype(np.float32) / 255,
        COLOURS.astype(np.float64),
        np.concatenate([COLOURS, OPAQUE], -1).astype(np.float16),
    ],
    ids=["rgba", "unit floats", "float colours", "rgba floats"],
)
def test_images_become_eight_bit_colours(tmp_path: Path, images: np.ndarray) -> None:
    episode, (read,) = read_one(tmp_path, demo().but({"obs/table_cam": images}), "policy/table_cam")
    assert episode.observations["policy/table_cam"].shape == (4, 6, 3)
    assert read.dtype == np.uint8
    assert np.array_equal(read, COLOURS)


def test_normalised_images_cannot_be_restored(tmp_path: Path) -> None:
    unit = COLOURS.astype(np.float32) / 255
    centred = unit - unit.mean((1, 2), keepdims=True)  # as `mdp.image` does by default
    with pytest.raises(EpisodeError, match="normalize: False"):
        read_one(tmp_path, demo().but({"obs/table_cam": centred}), "policy/table_cam")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    actions, positions = (demo()[path].astype(np.float64) for path in ("actions", "obs/eef_pos"))
    actions[3, 1] = positions[2, 0] = bad
    spoilt = demo().but({"actions": actions, "obs/eef_pos": positions})
    with RecorderFile(write_recording(tmp_path / "one.hdf5", [spoilt])) as file:
        episode = file.describe("demo_0")
        with pytest.raises(EpisodeError, match="actions holds a number that is not finite"):
            file.read_actions(episode)
        with pytest.raises(EpisodeError, match="obs/eef_pos holds a number that is not finite"):
            file.read_observation(episode, "policy/eef_pos")


@pytest.mark.parametrize(
    ("episode", "why"),
    [
        (demo().but({"actions": None}), "no actions"),
        (demo().but({"actions": np.zeros(6)}), r"\(6,\), not numbers of shape \(T, A\)"),
        (demo().but({"actions": np.array([[b"a"]] * 6)}), "not numbers"),
        (demo().but({}, num_samples=9), "6 actions of 9"),
        (demo().but({}, num_samples="many"), "damaged"),
    ],
)
def test_an_episode_that_contradicts_itself_is_refused(tmp_path: Path, episode: Demo, why: str) -> None:
    with pytest.raises(EpisodeError, match=why):
        read_one(tmp_path, episode)


def test_a_recording_that_does_not_say_is_believed(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "old.hdf5", [demo(success=None)], env_name="", sim_args=None)
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env_args"]
        del file["data/demo_0"].attrs["num_samples"]
    with RecorderFile(path) as file:
        assert file.env_name is None
        assert file.steps_per_second is None
        assert file.describe("demo_0").success is None


@pytest.mark.parametrize("sim_args", [{}, {"dt": 0.01}, {"dt": "fast", "decimation": 2}, {"dt": 0.0, "decimation": 2}])
def test_a_step_rate_that_is_none(tmp_path: Path, sim_args: dict) -> None:
    with RecorderFile(write_recording(tmp_path / "odd.hdf5", [demo()], sim_args=sim_args)) as file:
        assert file.steps_per_second is None


def test_a_recording_without_an_episode(tmp_path: Path) -> None:
    with RecorderFile(write_recording(tmp_path / "none.hdf5", [])) as file:
        assert file.episode_names == []


def test_links_to_other_files_are_not_followed(path: Path, tmp_path: Path) -> None:
    other = write_recording(tmp_path / "secret.hdf5", [demo(99)])
    with h5py.File(path, "a") as file:
        group = file["data/demo_0/obs"]
        assert isinstance(group, h5py.Group)
        group["elsewhere"] = h5py.ExternalLink(str(other), "/data/demo_0/obs/eef_pos")
        group["circle"] = h5py.SoftLink("/data/demo_0/obs")
        group["round"] = group
    with RecorderFile(path) as file:
        keys = file.describe("demo_0").observations.keys()
    assert "policy/elsewhere" not in keys
    assert "circle/eef_pos" not in keys
    assert "policy/eef_pos" in keys


WRONG_KINDS = {
    "empty": b"",
    "text": b"demonstrations, to be recorded tomorrow\n" * 50,
    "zip": b"PK\x03\x04" + bytes(500),
    "header alone": b"\x89HDF\r\n\x1a\n" + bytes(200),
}


@pytest.mark.parametrize("content", WRONG_KINDS.values(), ids=WRONG_KINDS)
def test_a_file_of_another_kind_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "demos.hdf5").write_bytes(content)
    with pytest.raises(UserError, match="no readable recording") as caught:
        RecorderFile(tmp_path / "demos.hdf5")
    assert caught.value.file == str(tmp_path / "demos.hdf5")


@pytest.mark.parametrize(
    ("place", "problem", "fix"),
    [("nowhere.hdf5", "no such recording", "correct the path"), (".", "folder is no recording", "files in it")],
)
def test_a_missing_file_is_one_error(tmp_path: Path, place: str, problem: str, fix: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        RecorderFile(tmp_path / place)
    assert caught.value.value == str(tmp_path / place)
    assert fix in str(caught.value.fix)


def test_hdf5_of_something_else_is_one_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["measurements"] = np.zeros(3)
    with pytest.raises(UserError, match="no group 'data', but \\['measurements'\\]"):
        RecorderFile(tmp_path / "other.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(UserError, match="no group 'data'"):
        RecorderFile(tmp_path / "other.hdf5")


def test_arguments_that_cannot_be_read_leave_the_episodes(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = "{not json"
    with RecorderFile(path) as file:
        assert "env_args of the group 'data' is no JSON" in str(file.env_args_problem)
        assert (file.env_name, file.steps_per_second) == (None, None)
        assert len(file.episode_names) == len(DEMOS)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_one_error(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match="no readable recording") as caught:
        RecorderFile(path)
    assert caught.value.file == str(path)


def test_damaged_values_are_those_of_their_episode_alone(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["data/demo_3/obs/table_cam"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 20 : chunk.byte_offset + 60] = bytes(40)
    path.write_bytes(content)
    with RecorderFile(path) as file:
        damaged = file.describe("demo_3")
        with pytest.raises(EpisodeError, match=r"damaged: obs/table_cam cannot be read"):
            file.read_observation(damaged, "policy/table_cam")
        assert np.array_equal(file.read_observation(damaged, "policy/wrist_cam"), DEMOS[3]["obs/wrist_cam"])
        assert np.array_equal(
            file.read_observation(file.describe("demo_4"), "policy/table_cam"), DEMOS[4]["obs/table_cam"]
        )


def test_damage_anywhere_in_the_values_is_an_error_of_ours(path: Path) -> None:
    original = path.read_bytes()
    chunks: list[tuple[int, int]] = []

    def find(_name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset):
            chunk = node.id.get_chunk_info(0)
            chunks.append((chunk.byte_offset, chunk.size))

    with h5py.File(path) as file:
        file.visititems(find)
    rng = np.random.default_rng(0)
    outcomes = set()
    for index in rng.permutation(len(chunks))[:40]:
        start, size = chunks[index]
        content = bytearray(original)
        content[start + size // 2] ^= 0xFF
        path.write_bytes(content)
        outcomes.add(read_everything(path))
    assert outcomes == {"read", "episode"}, "what is not read may be damaged"


@pytest.mark.parametrize("signature", [b"TREE", b"SNOD", b"HEAP", b"GCOL"])
@pytest.mark.parametrize("which", [0, -1])
def test_a_damaged_structure_is_an_error_of_ours(path: Path, signature: bytes, which: int) -> None:
    content = path.read_bytes()
    places = [match.start() for match in re.finditer(signature, content)]
    path.write_bytes(content[: places[which]] + b"XXXX" + content[places[which] + 4 :])
    assert read_everything(path) in ("file", "episode", "read" if which else "file")


def read_everything(path: Path) -> str:
    try:
        with RecorderFile(path) as file:
            for name in file.episode_names:
                episode = file.describe(name)
                assert episode.action_dim == ACTION_DIM or episode.num_steps >= 0
                file.read_actions(episode)
                for key in episode.observations:
                    file.read_observation(episode, key)
    except UserError:
        return "file"
    except EpisodeError:
        return "episode"
    return "read"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delitem(sys.modules, "regrasp.data.isaaclab_hdf5")
    with pytest.raises(UserError, match="needs the package h5py") as caught:
        import regrasp.data.isaaclab_hdf5  # noqa: F401
    assert caught.value.fix is not None
    assert caught.value.fix.startswith('pip install "h5py')


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("True", True),
        ("False", False),
        (np.bytes_("False"), False),
        (np.array([True]), True),
        (1.0, True),
        (0, False),
        (np.array([True, False]), None),
        (float("nan"), None),
        ("maybe", None),
        (0.5, None),
    ],
)
def test_success_is_read_however_it_was_written(path: Path, value: object, expected: bool | None) -> None:
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["success"] = value
    with RecorderFile(path) as recording:
        if expected is None:
            with pytest.raises(EpisodeError, match="neither true nor false"):
                recording.describe("demo_0")
        else:
            assert recording.describe("demo_0").success is expected


def test_a_recording_that_is_still_open_is_said_to_be(path: Path) -> None:
    script = f"import h5py; file = h5py.File({str(path)!r}, 'a'); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(UserError, match="still open in another program"):
            RecorderFile(path)
        writer.communicate("\n")
