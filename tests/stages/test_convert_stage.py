"""Recordings of Isaac Lab become a dataset by the mapping that the environment uses."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from run_toys import successes

from lab_python import LAB_PYTHON, STAND_IN, needs_lab
from lab_recordings import IMAGE, Demo, demo, record_with_handler, write_recording
from regrasp.cli.main import main
from regrasp.data.isaaclab_hdf5 import RecordedEpisode, RecorderFile
from regrasp.data.lerobot import DatasetWriter, DemonstrationDataset
from regrasp.envs.contract import Observation
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.models.registry import load_policy
from regrasp.stages.convert import Survey, convert, omission_lines, survey, write_dataset
from regrasp.stages.demonstrations import ACTION, STATE
from regrasp.stages.sft import train_base

EXPERIMENT = "isaaclab_stack_cube_ppo_groot"
INSTRUCTION = "stack the red block on the blue block, then stack the green block on the red block"


def experiment(*overrides: str) -> ExperimentConfig:
    return load_config(EXPERIMENT, overrides).config


def run(
    folder: Path, *demos: Demo, config: ExperimentConfig | None = None, keep_failed: bool = False, **recording
) -> tuple[DemonstrationDataset, Survey]:
    """Convert one recording of `demos`."""
    path = write_recording(folder / "demos.hdf5", demos, **recording)
    config = config or experiment()
    _, report = convert(config, [path], folder / "dataset", keep_failed=keep_failed)
    return DemonstrationDataset(folder / "dataset"), report


def reasons(report: Survey) -> dict[str | None, str]:
    return {omission.episode: omission.reason for omission in report.omissions}


def smooth(episode: Demo) -> Demo:
    """With images that a video codec keeps: one colour per image and camera, another in each."""
    length = len(episode["actions"])
    levels = np.linspace(20, 230, length).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (length, *IMAGE, 3))
    return episode.but({"obs/table_cam": images, "obs/wrist_cam": 255 - images})


@pytest.mark.parametrize("writer", ["layout", pytest.param("handler", marks=needs_lab)])
def test_the_dataset_is_the_recording_through_the_mapping(tmp_path: Path, writer: str) -> None:
    demos = [smooth(demo(seed, length=5 + seed)) for seed in range(3)]
    path = write_recording(tmp_path / "demos.hdf5", demos)
    if writer == "handler":
        record_with_handler({path: tmp_path / "handler.hdf5"})
        path = tmp_path / "handler.hdf5"
    _, report = convert(experiment(), [path], tmp_path / "dataset")
    dataset = DemonstrationDataset(tmp_path / "dataset")
    assert (len(report.episodes), report.num_frames, report.omissions) == (3, 18, ())
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 18, 20)
    assert dataset.tasks == (INSTRUCTION,)
    assert successes(dataset) == [True] * 3

    columns = dataset.load_columns([STATE, ACTION, "episode_index", "timestamp"])
    expected = [np.concatenate([d["obs/eef_pos"], d["obs/eef_quat"], d["obs/gripper_pos"]], 1) for d in demos]
    assert np.array_equal(columns[STATE], np.concatenate(expected))
    assert np.array_equal(columns[ACTION], np.concatenate([d["actions"] for d in demos]))
    assert np.array_equal(columns["episode_index"], np.repeat([0, 1, 2], [5, 6, 7]))
    assert columns["timestamp"][4] == pytest.approx(4 / 20)
    for camera, term in (("main", "table_cam"), ("extra_0", "wrist_cam")):
        images = dataset.load_images(f"observation.images.{camera}").astype(int)
        seen = np.concatenate([d[f"obs/{term}"] for d in demos]).astype(int)
        assert np.abs(images - seen).max() <= 3, "each image stands beside the action that followed it"


def test_a_recorded_camera_is_turned_as_the_environment_s_is(tmp_path: Path) -> None:
    half = np.zeros((6, *IMAGE, 3), np.uint8)
    half[:, : IMAGE[0] // 2] = 200
    transform = "isaaclab.image_transform={table_cam: [rotate_270]}"
    config = experiment(f"env.train.{transform}", f"env.eval.{transform}")
    dataset, _ = run(tmp_path, demo().but({"obs/table_cam": half, "obs/wrist_cam": half}), config=config)
    main, extra = (dataset.load_images(f"observation.images.{name}").astype(int) for name in ("main", "extra_0"))
    assert np.abs(main - np.rot90(half, 1, (1, 2))).mean() < 3
    assert np.abs(extra - half).mean() < 3


def test_only_successful_episodes_unless_asked(tmp_path: Path) -> None:
    demos = [demo(0, success=False), demo(1), demo(2, success=None)]
    _, report = run(tmp_path, *demos)
    assert reasons(report) == {"demo_0": "not successful", "demo_2": "not recorded as successful"}
    assert report.num_recorded == 3
    (tmp_path / "all").mkdir()
    dataset, report = run(tmp_path / "all", *demos, keep_failed=True)
    assert report.omissions == ()
    assert successes(dataset) == [False, True, False]


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    other_camera = np.zeros((6, 8, 8, 3), np.uint8)
    spoilt = demo()["obs/eef_pos"].copy()
    spoilt[2] = np.nan
    _, report = run(
        tmp_path,
        demo(0),
        demo(1, length=1),
        demo(2).but({"obs/eef_quat": None}),
        demo(3).but({"obs/table_cam": other_camera}),
        demo(4).but({"actions": np.zeros((6, 8), np.float32)}),
        demo(5).but({"obs/gripper_pos": np.zeros((4, 2), np.float32)}),
        demo(6).but({"obs/eef_pos": spoilt}),
        demo(7).but({"obs/eef_pos": np.zeros((6, 5), np.float32)}),
        demo(8),
        demo(9).but({"obs/table_cam": np.zeros((6, 47, 46, 3), np.uint8)}),
    )
    found = reasons(report)
    assert len(report.episodes) == 2
    assert found.pop("demo_1") == "too short: 1 actions"
    assert found.pop("demo_2").startswith("The recording offers no observation named 'eef_quat', expected one of ['")
    assert "cameras of 8 x 8, 16 x 20, and the first episode a state of 9" in found.pop("demo_3")
    assert found.pop("demo_4") == (
        "The mapped action does not have the simulator's width: prefix_pad 0 + action_dim 7 + suffix_pad 0 = 7,"
        " expected 8 in total"
    )
    assert found.pop("demo_5") == "obs/gripper_pos has 4 rows for 6 actions"
    assert "not finite" in found.pop("demo_6")
    assert "a state of 11" in found.pop("demo_7")
    assert found.pop("demo_9") == "obs/table_cam is 47 x 46, and H.264 stores only an even height and width"
    assert not found


def test_a_damaged_episode_leaves_the_others(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "demos.hdf5", [demo(0), demo(1), demo(2)])
    damage(path, "data/demo_1/obs/wrist_cam")
    _, report = convert(experiment(), [path], tmp_path / "dataset")
    assert len(report.episodes) == DemonstrationDataset(tmp_path / "dataset").num_episodes == 2
    assert reasons(report)["demo_1"].startswith("damaged: obs/wrist_cam cannot be read")


def damage(path: Path, dataset: str) -> None:
    with h5py.File(path) as file:
        chunk = file[dataset].id.get_chunk_info(0)  # pyright: ignore[reportAttributeAccessIssue]
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 20 : chunk.byte_offset + 60] = bytes(40)
    path.write_bytes(content)


def test_several_recordings_are_one_dataset(tmp_path: Path) -> None:
    files = [write_recording(tmp_path / f"{i}.hdf5", [demo(2 * i), demo(2 * i + 1)]) for i in range(2)]
    files.append(write_recording(tmp_path / "none.hdf5", []))
    _, report = convert(experiment(), files, tmp_path / "dataset")
    columns = DemonstrationDataset(tmp_path / "dataset").load_columns([ACTION])
    assert np.array_equal(columns[ACTION], np.concatenate([demo(i)["actions"] for i in range(4)]))
    assert omission_lines(report.omissions) == [f"{tmp_path / 'none.hdf5'}: the file: it holds no episode"]


def test_a_recording_under_two_names_is_taken_once(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "demos.hdf5", [demo(0)])
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.hdf5").symlink_to(path)
    other = tmp_path / "folder/../demos.hdf5"
    chosen = survey(experiment(), [path, other, path, tmp_path / "link.hdf5"])
    assert [episode.file for episode in chosen.episodes] == [path]
    assert [warning.split(" is given twice")[0] for warning in chosen.warnings] == [
        str(other),
        str(path),
        str(tmp_path / "link.hdf5"),
    ]


def test_the_report_groups_by_reason(tmp_path: Path) -> None:
    _, report = run(tmp_path, demo(0), *(demo(i, success=False) for i in range(1, 9)))
    (line,) = omission_lines(report.omissions)
    assert line == f"{tmp_path / 'demos.hdf5'}: demo_1, demo_2, demo_3, demo_4, demo_5 and 3 more: not successful"


def test_a_mapping_that_never_fits_is_the_experiments_mistake(tmp_path: Path) -> None:
    config = experiment("env.train.isaaclab.main_images=tabel_cam")
    with pytest.raises(UserError, match=r"no observation named 'tabel_cam' \(.*demos.hdf5, demo_1\)") as caught:
        run(tmp_path, demo(0, success=False), demo(1), config=config)
    assert caught.value.key == "env.train.mapping.main_images"
    assert str(caught.value.fix).startswith("did you mean 'table_cam'? Otherwise record with a task that has it")
    assert not (tmp_path / "dataset").exists()


BLIND = {"obs/table_cam": None, "obs/wrist_cam": None}
TERMS = {name: None for name in demo().arrays if name.startswith("obs/")}


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        (BLIND, "a camera: the Visuomotor task, with --enable_cameras"),
        (TERMS, "this recording has none"),
        (TERMS | {"obs": np.zeros((6, 9), np.float32)}, "concatenate_terms=False in the group 'policy'"),
    ],
    ids=["no camera", "no observation", "one vector"],
)
def test_what_the_recorder_left_out_is_mended_by_recording_again(
    tmp_path: Path, changes: dict[str, np.ndarray | None], fix: str
) -> None:
    with pytest.raises(UserError, match="no observation named 'table_cam'") as caught:
        run(tmp_path, demo(0).but(changes))
    assert fix in str(caught.value.fix)
    assert "correct the name" not in str(caught.value)


@pytest.mark.parametrize(
    ("demos", "fix"),
    [
        ([demo(0, success=False)], "--keep_failed"),
        ([], "record"),
        ([demo(0, length=1)], "record"),
        ([demo().but({"obs/table_cam": np.full((6, *IMAGE, 3), -0.5, np.float32)})], "normalize: False"),
        ([demo().but({"obs/table_cam": np.zeros((6, 47, 47, 3), np.uint8)})], "even height and width"),
    ],
)
def test_nothing_to_convert_is_one_error(tmp_path: Path, demos: list[Demo], fix: str) -> None:
    with pytest.raises(UserError, match="None of the recorded episodes") as caught:
        run(tmp_path, *demos)
    assert fix in str(caught.value.fix)


def test_nothing_sound_leaves_nothing(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "demos.hdf5", [demo(0)])
    damage(path, "data/demo_0/obs/wrist_cam")
    chosen = survey(experiment(), [path])
    with pytest.raises(UserError, match="None of the recorded episodes") as caught:
        write_dataset(experiment(), chosen, tmp_path / "dataset")
    assert "damaged" in str(caught.value.value)
    assert [file.name for file in tmp_path.iterdir()] == ["demos.hdf5"]


def test_an_interrupted_conversion_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = run(tmp_path, demo(0))
    path = write_recording(tmp_path / "demos.hdf5", [demo(1), demo(2)])
    add, calls = DatasetWriter.add_episode, []

    def interrupted(*arguments) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(*arguments)

    monkeypatch.setattr(DatasetWriter, "add_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(experiment(), [path], tmp_path / "dataset", overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dataset", "demos.hdf5"]
    again = DemonstrationDataset(tmp_path / "dataset").load_columns([ACTION])[ACTION]
    assert np.array_equal(again, dataset.load_columns([ACTION])[ACTION])


def test_one_episode_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    add, read = DatasetWriter.add_episode, RecorderFile.read_observation

    def noted_add(*arguments) -> None:
        events.append("written")
        add(*arguments)

    def noted_read(file: RecorderFile, episode: RecordedEpisode, key: str) -> np.ndarray:
        events.append(episode.name)
        return read(file, episode, key)

    monkeypatch.setattr(DatasetWriter, "add_episode", noted_add)
    monkeypatch.setattr(RecorderFile, "read_observation", noted_read)
    run(tmp_path, demo(0), demo(1))
    assert [event for event, _ in itertools.groupby(events)] == ["demo_0", "written", "demo_1", "written"]


def test_a_dataset_is_replaced_only_when_asked(tmp_path: Path) -> None:
    run(tmp_path, demo(0))
    path = write_recording(tmp_path / "more.hdf5", [demo(1), demo(2)])
    chosen = survey(experiment(), [path])
    with pytest.raises(UserError, match="not empty"):
        write_dataset(experiment(), chosen, tmp_path / "dataset")
    write_dataset(experiment(), chosen, tmp_path / "dataset", overwrite=True)
    assert DemonstrationDataset(tmp_path / "dataset").num_episodes == 2


def test_actions_are_those_of_the_policy(tmp_path: Path) -> None:
    layout = "{slices: [{policy: [0, 2], simulator: [4, 6]}, {policy: [2, 3], simulator: [0, 1]}], scale: 2.0}"
    config = experiment("actor.model.action_dim=3", f"+env.train.isaaclab.action_mapping={layout}")
    still = demo(0)["actions"].copy()
    still[:, [1, 2, 3, 6]] = 0
    dataset, report = run(tmp_path, demo(0).but({"actions": still}), config=config)
    assert np.array_equal(dataset.load_columns([ACTION])[ACTION], still[:, [4, 5, 0]] / 2)
    assert report.warnings == ()


def test_actions_that_the_policy_cannot_repeat_are_warned_of(tmp_path: Path) -> None:
    actions = demo(0)["actions"].copy()
    actions[:, 6] = 0.25
    actions[3, 6] = -0.75
    config = experiment("actor.model.action_dim=6", "+env.train.isaaclab.action_mapping={suffix_pad: 1}")
    _, report = run(tmp_path, demo(0).but({"actions": actions}), config=config)
    (warning,) = report.warnings
    assert "up to 0.75 away from the constants" in warning


def test_an_instruction_can_be_chosen_by_an_observation(tmp_path: Path) -> None:
    chosen = [
        "env.train.isaaclab.task_description=null",
        "+env.train.isaaclab.instruction_key=goal",
        "+env.train.isaaclab.instructions=[left, right]",
    ]
    dataset, report = run(tmp_path, demo(1), demo(2), demo(3), config=experiment(*chosen))
    assert [episode.task for episode in dataset.episodes] == ["right", "left", "right"]
    (tmp_path / "one").mkdir()
    out_of_range = demo(2).but({"obs/goal": np.full((6, 1), 2)})
    _, report = run(tmp_path / "one", demo(1), out_of_range, config=experiment(*chosen))
    assert reasons(report) == {"demo_1": "policy/goal chose instruction 2 of 2"}


def test_recordings_need_an_instruction() -> None:
    config = experiment("env.train.isaaclab.task_description=null")
    with pytest.raises(UserError, match="no instruction") as caught:
        survey(config, [])
    assert caught.value.key == "env.train.mapping.task_description"


def test_an_experiment_of_another_simulator_asks_for_the_recordings_own() -> None:
    with pytest.raises(UserError, match="this experiment's task is not") as caught:
        survey(load_config("pick_cube_ppo_groot").config, [])
    assert caught.value.key == "env.train.env_type"
    assert "--config_name" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("recorded", "warns"),
    [
        ("Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0", False),
        ("Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-Mimic-v0", False),
        ("isaaclab_tasks:Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0", False),
        ("", False),
        ("Isaac-Stack-Cube-Franka-IK-Rel-v0", True),
    ],
)
def test_a_recording_of_another_task_is_warned_of(tmp_path: Path, recorded: str, warns: bool) -> None:
    path = write_recording(tmp_path / "demos.hdf5", [demo()], env_name=recorded)
    warnings = survey(experiment(), [path]).warnings
    assert len(warnings) == warns
    assert all(recorded in warning for warning in warnings)


def test_the_trocar_task_is_known_by_both_names(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "demos.hdf5", [demo()], env_name="IsaacContrib-Assemble-Trocar-G129-Dex3")
    config = experiment("env.train.init_params.id=Isaac-Assemble-Trocar-G129-Dex3-v0")
    assert survey(config, [path]).warnings == ()


def modality_of(folder: Path, *overrides: str) -> dict:
    run(folder, demo(), config=experiment(*overrides))
    return json.loads((folder / "dataset/meta/modality.json").read_text())


def test_modality_without_names_is_that_of_the_observations(tmp_path: Path) -> None:
    assert modality_of(tmp_path) == {
        "state": {
            "eef_pos": {"start": 0, "end": 3},
            "eef_quat": {"start": 3, "end": 7},
            "gripper_pos": {"start": 7, "end": 9},
        },
        "action": {"action": {"start": 0, "end": 7}},
        "video": {
            "table_cam": {"original_key": "observation.images.main"},
            "wrist_cam": {"original_key": "observation.images.extra_0"},
        },
        "annotation": {"human.task_description": {"original_key": "task_index"}},
    }


def test_modality_has_the_names_of_the_checkpoint(tmp_path: Path) -> None:
    names = (
        "{video: {main_images: video.front, extra_view_images: [video.wrist]},"
        " state: [{gr00t_key: state.arm, slice: [0, 6]}, {gr00t_key: state.gripper, slice: [6, 7]}]}"
    )
    data = "{video: [front, wrist], state: [arm, gripper], action: [gripper, arm], language: annotation.human.action}"
    found = modality_of(
        tmp_path,
        f"+env.train.isaaclab.gr00t_mapping={names}",
        f"+env.train.isaaclab.data_config={data}",
        f"+env.eval.isaaclab.gr00t_mapping={names}",
        f"+env.eval.isaaclab.data_config={data}",
    )
    assert found["state"] == {"arm": {"start": 0, "end": 6}, "gripper": {"start": 6, "end": 7}}
    assert found["action"] == {"gripper": {"start": 0, "end": 1}, "arm": {"start": 1, "end": 7}}
    assert found["video"] == {
        "front": {"original_key": "observation.images.main"},
        "wrist": {"original_key": "observation.images.extra_0"},
    }
    assert found["annotation"] == {"human.action": {"original_key": "task_index"}}


def test_modality_tells_slices_of_one_observation_apart(tmp_path: Path) -> None:
    found = modality_of(
        tmp_path, "env.train.isaaclab.states=[{key: eef_pos, slice: [0, 2]}, {key: eef_pos, slice: [2, 3]}]"
    )
    assert found["state"] == {
        "policy/eef_pos[0:2]": {"start": 0, "end": 2},
        "policy/eef_pos[2:3]": {"start": 2, "end": 3},
    }


def test_a_state_policy_learns_from_a_recording(tmp_path: Path) -> None:
    small = ["actor.model.model_type=mlp", "actor.model.precision=fp32", "sft.steps=3", "sft.batch_size=8"]
    config = experiment(*small, "env.train.isaaclab.main_images=null", "env.train.isaaclab.extra_view_images=[]")
    dataset, _ = run(tmp_path, demo(0), demo(1), config=config)
    assert dataset.cameras == ()
    folder, result = train_base(config, dataset.root, None, tmp_path / "base")
    policy = load_policy(folder)
    assert (policy.spec.state_dim, policy.spec.action_dim) == (9, 7)
    assert result.num_frames == 12
    observation = Observation({}, {"state": torch.zeros(1, 9)}, [INSTRUCTION])
    assert policy.predict(observation).shape == (1, 16, 7)


POINT = (
    "env.train.init_params.id=lab_tasks:Point-v0",
    "env.isaaclab.device=cpu",
    f"env.isaaclab.python={LAB_PYTHON}",
    "env.train.total_num_envs=2",
    "env.eval.total_num_envs=2",
    "env.eval.num_episodes=3",
    "env.train.max_episode_steps=10",
    "env.train.max_steps_per_rollout_epoch=12",
    *(
        f"++env.{name}.isaaclab.{value}"
        for name in ("train", "eval")
        for value in (
            "task_description=push",
            "main_images=front",
            "extra_view_images=[]",
            "states=[position]",
            "embodiment_tag_id=0",
        )
    ),
    "actor.model.precision=fp32",
    "actor.model.action_dim=3",
    "actor.model.num_action_chunks=4",
    "actor.micro_batch_size=4",
    "actor.global_batch_size=4",
    "sft.steps=3",
    "sft.batch_size=8",
)


@needs_lab
@pytest.mark.full
def test_recording_to_base_model_to_isaac_lab(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run([LAB_PYTHON, STAND_IN / "record_points.py", "demos.hdf5"], check=True, timeout=120)
    shared = ["--config_name", EXPERIMENT, *POINT]
    assert main(["convert", "demos.hdf5", *shared]) == 0, capsys.readouterr().err
    _check_pushes(DemonstrationDataset(tmp_path / "demos"))
    assert main(["sft", *shared, "--backbone", str(backbone)]) == 0, capsys.readouterr().err
    assert main(["play", *shared, "--model_path", "base"]) == 0, capsys.readouterr().err
    again = ["--model_path", "base", "--num_demos", "2", "--output", "more", "collect.only_successful=false"]
    assert main(["collect", *shared, *again]) == 0, capsys.readouterr().err
    more = DemonstrationDataset(tmp_path / "more")
    assert (more.num_episodes, more.features[ACTION].shape, more.features[STATE].shape) == (2, (3,), (2,))
    printed = capsys.readouterr().out
    assert "Left out: demos.hdf5: demo_2: not successful" in printed
    assert f"Demonstrations: {tmp_path / 'demos'} (3 of 4 recorded episodes, 12 frames at 50 Hz)" in printed
    assert "push" in printed.split("instruction")[1]


def _check_pushes(dataset: DemonstrationDataset) -> None:
    """Three pushes of 0.1 per step until x is above 0.35; each row is the observation before its action."""
    columns = dataset.load_columns([STATE, ACTION, "episode_index"])
    assert np.array_equal(columns["episode_index"], np.repeat([0, 1, 2], 4))
    assert np.allclose(columns[STATE][:, 0], np.tile([0.0, 0.1, 0.2, 0.3], 3), atol=1e-6)
    assert np.allclose(columns[ACTION], [0.1, 0.0, 0.0])
    levels = dataset.load_images("observation.images.main").mean((1, 2, 3))
    assert np.abs(levels - np.tile([100, 110, 120, 130], 3)).max() <= 2
