"""Crashes while writing, wrong targets, and damaged datasets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrasp.data.lerobot import DatasetWriter, DemonstrationDataset, FeatureSpec
from regrasp.errors import UserError
from regrasp.logging.encoder import H264Encoder

CAMERA = "observation.images.front"
FEATURES = {"action": FeatureSpec("float32", (2,)), CAMERA: FeatureSpec("video", (32, 32, 3))}
DATA = "data/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def make_episode(length: int = 6) -> dict[str, np.ndarray]:
    ramp = np.arange(length, dtype=np.uint8)[:, None, None, None]
    return {
        "action": np.ones((length, 2), dtype=np.float32),
        CAMERA: np.broadcast_to(ramp * 20, (length, 32, 32, 3)).copy(),
    }


def make_writer(root: Path, features: dict[str, FeatureSpec] = FEATURES, overwrite: bool = False) -> DatasetWriter:
    return DatasetWriter(root, fps=10, robot_type="gripper", features=features, overwrite=overwrite)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original") / "d"
    with make_writer(root) as writer:
        writer.add_episode(make_episode(), "lift", True)
        writer.add_episode(make_episode(9), "lift", True)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A dataset as others write it, without checksums."""
    return Path(shutil.copytree(original, tmp_path / "d"))


def test_a_crash_leaves_nothing(tmp_path: Path) -> None:
    def collect() -> None:
        with make_writer(tmp_path / "d") as writer:
            writer.add_episode(make_episode(), "lift", True)
            raise RuntimeError("the simulator died")

    with pytest.raises(RuntimeError, match="simulator"):
        collect()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_dataset_at_its_path(tmp_path: Path) -> None:
    with make_writer(tmp_path / "d") as writer:
        writer.add_episode(make_episode(), "lift", True)
        assert not (tmp_path / "d").exists()
        (draft,) = tmp_path.iterdir()
        with pytest.raises(UserError, match=r"info\.json"):
            DemonstrationDataset(draft)


CLOSING = {
    "finishing the table": (pq.ParquetWriter, "close"),
    "finishing the video": (H264Encoder, "close"),
    "writing the statistics": (DatasetWriter, "_statistics"),
    "writing the description": (DatasetWriter, "_info"),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize(("owner", "method"), CLOSING.values(), ids=CLOSING)
@pytest.mark.parametrize("existed", [True, False])
def test_a_writer_stopped_while_it_closes_leaves_what_was_there(
    tmp_path: Path,
    original: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    error: type[BaseException],
    existed: bool,
) -> None:
    root = tmp_path / "d"
    if existed:
        shutil.copytree(original, root)
    writer = make_writer(root, overwrite=True)
    writer.add_episode(make_episode(), "drop", True)

    complete = getattr(owner, method)

    def stopped(*arguments: object) -> None:
        complete(*arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, stopped)
        with pytest.raises(error), writer:
            pass
    assert list(tmp_path.iterdir()) == ([root] if existed else [])
    if existed:
        assert DemonstrationDataset(root).tasks == ("lift",)


@pytest.mark.parametrize(("num_renames", "kept"), [(1, "lift"), (2, "drop")])
def test_replacing_a_dataset_leaves_one_of_the_two(
    root: Path, monkeypatch: pytest.MonkeyPatch, num_renames: int, kept: str
) -> None:
    """A signal that arrives in a rename is raised after it."""
    rename, calls = Path.rename, []

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        calls.append(target)
        if len(calls) == num_renames:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(KeyboardInterrupt), make_writer(root, overwrite=True) as writer:
        writer.add_episode(make_episode(), "drop", True)
    assert DemonstrationDataset(root).tasks == (kept,)
    assert list(root.parent.iterdir()) == [root]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = pq.ParquetWriter.close

    def full(writer: pq.ParquetWriter) -> None:
        finish(writer)
        raise OSError(28, "No space left on device")

    def collect() -> None:
        with make_writer(tmp_path / "d") as writer:
            writer.add_episode(make_episode(), "lift", True)
            monkeypatch.setattr(pq.ParquetWriter, "close", full)
            writer.add_episode(make_episode() | {"action": np.ones(1)}, "lift", True)

    with pytest.raises(UserError, match="No space"):
        collect()
    assert list(tmp_path.iterdir()) == []


def test_no_episode_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No episode"), make_writer(tmp_path / "d"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_kept_unless_told_otherwise(root: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        make_writer(root)
    assert DemonstrationDataset(root).num_episodes == 2
    with make_writer(root, overwrite=True) as writer:
        writer.add_episode(make_episode(), "drop", True)
        assert DemonstrationDataset(root).num_episodes == 2
    assert DemonstrationDataset(root).tasks == ("drop",)
    assert list(root.parent.iterdir()) == [root]


def test_overwrite_never_deletes_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        make_writer(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_odd_image_size_names_the_camera(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{CAMERA}.*odd") as caught:
        make_writer(tmp_path / "d", {CAMERA: FeatureSpec("video", (32, 33, 3))})
    assert caught.value.value == (32, 33)


@pytest.mark.parametrize(
    "spec", [FeatureSpec("float32", (2, 2)), FeatureSpec("complex64", (2,)), FeatureSpec("video", (3, 32, 32))]
)
def test_features_that_cannot_be_stored_are_refused(tmp_path: Path, spec: FeatureSpec) -> None:
    with pytest.raises(ValueError, match="shape"):
        make_writer(tmp_path / "d", {"thing": spec})


@pytest.mark.parametrize(
    "change",
    [
        {"action": np.ones((6, 2))},
        {"action": np.ones((6, 3), dtype=np.float32)},
        {"action": np.ones((5, 2), dtype=np.float32)},
        {"action": np.full((6, 2), np.nan, dtype=np.float32)},
        {CAMERA: np.zeros((6, 32, 32, 3), dtype=np.float32)},
        {"extra": np.ones(6)},
    ],
)
def test_episodes_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"action|statistics|front"), make_writer(tmp_path / "d") as writer:
        writer.add_episode(make_episode() | change, "lift", True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(path)), path)


@pytest.mark.parametrize("name", [DATA, VIDEO, EPISODES, "meta/info.json", "meta/stats.json", "meta/tasks.parquet"])
@pytest.mark.parametrize("spoil", [Path.unlink, truncate])
def test_missing_and_truncated_files_are_named(root: Path, name: str, spoil: Callable[[Path], None]) -> None:
    spoil(root / name)
    with pytest.raises(UserError) as caught:
        _ = DemonstrationDataset(root).stats
    assert caught.value.file is not None
    assert (root / name).is_relative_to(caught.value.file)


def test_another_version_is_named(root: Path) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(UserError, match=r"v2\.1") as caught:
        DemonstrationDataset(root)
    assert caught.value.expected == "v3.0"


@pytest.mark.parametrize(
    "change",
    [
        {"fps": 0},
        {"total_frames": "many"},
        {"features": []},
        {"data_path": None},
        {"fps": True},
        {"video_path": "{x}"},
        {"data_path": "/etc/{chunk_index}"},
        {"data_path": "../{chunk_index}/{file_index}.parquet"},
        {"data_path": "data/{chunk_index:0999999999d}/{file_index}.parquet"},
        {"data_path": "data/{chunk_index.__class__}/{file_index}.parquet"},
        {"video_path": "videos/{video_key!r}.mp4"},
        {"features": {"../../camera": {"dtype": "video", "shape": [32, 32, 3]}}},
        {"features": {CAMERA: {"dtype": "video", "shape": [32]}}},
    ],
)
def test_malformed_info(root: Path, change: dict[str, object]) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | change))
    with pytest.raises(UserError, match="again") as caught:
        DemonstrationDataset(root)
    assert caught.value.file == str(root / "meta/info.json")
    assert (caught.value.key or "").startswith(next(iter(change)))


def test_a_bit_that_changed_in_a_page_of_a_table_is_found(root: Path) -> None:
    file = root / DATA
    content = file.read_bytes()
    chunk = pq.read_metadata(file).row_group(0).column(pq.read_schema(file).get_field_index("action"))
    at = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 3
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(UserError, match="CRC") as caught:
        DemonstrationDataset(root).load_columns(["action"])
    assert caught.value.file == str(file)


def test_video_shorter_than_the_tables(root: Path, tmp_path: Path) -> None:
    with make_writer(tmp_path / "short") as writer:
        writer.add_episode(make_episode(), "lift", True)
    shutil.copy(tmp_path / "short" / VIDEO, root / VIDEO)
    with pytest.raises(UserError, match="15 frames") as caught:
        DemonstrationDataset(root)
    assert caught.value.file == str(root / VIDEO)
    assert caught.value.value == 6


def test_video_of_another_size(root: Path, tmp_path: Path) -> None:
    with make_writer(tmp_path / "wide", {CAMERA: FeatureSpec("video", (32, 64, 3))}) as writer:
        writer.add_episode({CAMERA: np.zeros((15, 32, 64, 3), dtype=np.uint8)}, "lift", True)
    shutil.copy(tmp_path / "wide" / VIDEO, root / VIDEO)
    with pytest.raises(UserError, match="image size"):
        DemonstrationDataset(root)


def test_video_with_zeroed_frames(root: Path) -> None:
    with av.open(str(root / VIDEO)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][7]
        assert packet.pos is not None
        start, size = packet.pos, packet.size
    content = bytearray((root / VIDEO).read_bytes())
    content[start : start + size] = bytes(size)
    (root / VIDEO).write_bytes(content)
    dataset = DemonstrationDataset(root)
    with pytest.raises(UserError, match="damaged") as caught:
        dataset.load_images(CAMERA)
    assert caught.value.file == str(root / VIDEO)


def test_data_with_fewer_rows_than_the_tables(root: Path) -> None:
    rewrite(root / DATA, lambda table: table.slice(0, 10))
    with pytest.raises(UserError, match="15 frames"):
        DemonstrationDataset(root)


def test_data_without_a_column_or_with_nulls(root: Path) -> None:
    rewrite(root / DATA, lambda table: table.set_column(0, "action", pa.nulls(15, table.schema.field(0).type)))
    with pytest.raises(UserError, match="episode 0, frame 0"):
        DemonstrationDataset(root).load_columns(["action"])
    rewrite(root / DATA, lambda table: table.drop_columns(["action"]))
    with pytest.raises(UserError, match="lacks the columns"):
        DemonstrationDataset(root).load_columns(["action"])


@pytest.mark.parametrize(
    ("column", "row", "value", "expected"),
    [
        ("task_index", 12, 1, "an index of the 1 tasks"),
        ("task_index", 3, -1, "an index of the 1 tasks"),
        ("episode_index", 14, 0, "1, as the episode table says"),
        ("frame_index", 6, 7, "0, as the episode table says"),
        ("timestamp", 4, 9.0, "0.4, as the episode table says"),
        ("timestamp", 4, float("nan"), "0.4, as the episode table says"),
        ("index", 2, 3, "2, as the episode table says"),
        ("task_index", 11, None, "1 value(s)"),
    ],
)
def test_tables_that_contradict_each_other(root: Path, column: str, row: int, value: float, expected: str) -> None:
    def edit(table: pa.Table) -> pa.Table:
        number = table.column_names.index(column)
        values = table[column].to_pylist()
        values[row] = value
        return table.set_column(number, column, pa.array(values, table.schema.field(number).type))

    rewrite(root / DATA, edit)
    episode, frame = (0, row) if row < 6 else (1, row - 6)
    with pytest.raises(UserError, match=f"episode {episode}, frame {frame}") as caught:
        DemonstrationDataset(root)
    assert (caught.value.file, caught.value.key) == (str(root / DATA), column)
    assert str(caught.value.expected).startswith(expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_number_that_is_none_is_located(root: Path, value: float | None) -> None:
    def edit(table: pa.Table) -> pa.Table:
        rows = table["action"].to_pylist()
        rows[10][1] = value
        return table.set_column(0, "action", pa.array(rows, table.schema.field(0).type))

    rewrite(root / DATA, edit)
    with pytest.raises(UserError, match="Column action cannot be used: episode 1, frame 4") as caught:
        DemonstrationDataset(root).load_columns(["action"])
    assert caught.value.file == str(root / DATA)


def test_data_in_another_order(root: Path) -> None:
    rewrite(root / DATA, lambda table: table.take(list(reversed(range(15)))))
    with pytest.raises(UserError, match="episode 0, frame 0"):
        DemonstrationDataset(root).load_columns(["action"])


def test_episode_table_with_a_gap_or_a_lost_episode(root: Path) -> None:
    whole = pq.read_table(root / EPISODES)
    pq.write_table(whole.slice(1), root / EPISODES)
    with pytest.raises(UserError, match="gap"):
        DemonstrationDataset(root)
    pq.write_table(whole.slice(0, 1), root / EPISODES)
    with pytest.raises(UserError, match="lists 1 episodes"):
        DemonstrationDataset(root)
    empty = pa.nulls(2, pa.int64())
    pq.write_table(whole.set_column(whole.column_names.index("length"), "length", empty), root / EPISODES)
    with pytest.raises(UserError, match="missing or empty"):
        DemonstrationDataset(root)
