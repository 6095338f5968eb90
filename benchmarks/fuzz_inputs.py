"""What `fuzz_files.py` alters: how each kind of folder is made, and how it is read."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml

import regrasp
from regrasp.checkpoint.layout import MANIFEST
from regrasp.checkpoint.manifest import Manifest, describe, encode
from regrasp.checkpoint.run_record import versions
from regrasp.config.types import changed
from regrasp.data.lerobot import DatasetWriter, DemonstrationDataset
from regrasp.data.lerobot.schema import MODALITY_PATH, SOURCES_PATH
from regrasp.engine.local import LocalEngine
from regrasp.engine.policies import create_policy, overlay_rl_weights
from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.registry import create_env, preflight
from regrasp.experiment.load import LoadedConfig, load_config
from regrasp.folders import COMMAND_FILE, CONFIG_FILE, LOCK_FILE, atomic_folder
from regrasp.models.contract import Policy
from regrasp.runner.resume import read_run_state
from regrasp.runner.videos import VIDEO_FOLDER, video_name
from regrasp.stages.convert import convert, omission_lines
from regrasp.stages.dataset_features import check_sources, find_features
from regrasp.stages.demonstrations import (
    demonstration_columns,
    demonstration_features,
)
from regrasp.stages.play import EPISODES_FILE, EVALUATION_FILE, PlayOptions, play
from regrasp.stages.report import SUMMARY_FILE, report_run
from regrasp.stages.train import checkpoint_to_resume, train
from regrasp.stages.training_frames import load_frames

_WRITTEN = Path(__file__).parents[1] / "tests" / "data" / "written_by_0_1_0"
_SMALL = (
    "runner.logger.logger_backends=[]",
    "runner.logger.experiment_name=small",
    "runner.force=true",
    "runner.max_epochs=2",
    "runner.val_check_interval=1",
    "runner.save_interval=1",
    "runner.keep_checkpoints=null",
    "env.train.num_workers=1",
    "env.eval.num_workers=1",
    "env.train.total_num_envs=4",
    "env.eval.total_num_envs=4",
    "env.eval.num_episodes=4",
    "actor.global_batch_size=8",
    "actor.micro_batch_size=8",
)
_VIDEO = b"\0\0\0\x18ftypisom" + bytes(12)
"""Enough of a video for a page that only carries it."""
_RECORDED = "Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0"
_OWN = {"mlp": ("actor.model.mlp.hidden=[8,8]",), "groot": ("actor.model.value_head_hidden=[4]",)}


@dataclass(frozen=True)
class Surface:
    """A kind of folder."""

    name: str
    make: Callable[[Path], None]
    """Writes the unaltered folder."""
    read: Callable[[Path], str]
    """All that is read of it, as a sum; raises what a user would see."""
    share: float
    """Of all inputs."""
    has_checksums: bool = False
    files: str = "*"
    """Which of them are altered."""
    after: Callable[[Path], None] = lambda folder: None
    """What is done to an altered folder before it is read."""


@functools.cache
def _experiment(kind: str) -> LoadedConfig:
    return load_config(f"pick_cube_ppo_{kind}", [*_SMALL, *_OWN[kind]])


@functools.cache
def _env(kind: str) -> VecEnv:
    return create_env(_experiment(kind).config.env.train, "train", 4, 0)


def _sum(*parts: Any) -> str:
    """A sum over tensors, arrays and whatever prints alike when it is alike."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, dict):
            part = _sum(*(item for key in part for item in (key, part[key])))
        elif isinstance(part, (list, tuple)):
            part = _sum(*part)
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().reshape(-1).view(torch.uint8).numpy() if part.numel() else str(part.shape)
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else f"{part!r}|".encode())
    return digest.hexdigest()


@functools.cache
def _engine() -> LocalEngine:
    """What a checkpoint is restored into."""
    config = _experiment("mlp").config
    policy = config.actor.model.build(_env("mlp").spec.state_dim, 0)
    return LocalEngine(config, policy, [_env("mlp")], 0, torch.device("cpu"), Path())


def _make_model(kind: str, checksums: bool, folder: Path) -> None:
    with atomic_folder(folder, checksums=checksums) as draft:
        regrasp.load_policy(_WRITTEN / kind / "base").save(draft)


def _read_model(kind: str, folder: Path) -> str:
    """As `play --model_path` and `train --model_path`."""
    config = changed(_experiment(kind).config, "actor.model.model_path", str(folder))
    policy = create_policy(config.actor.model, config.env.train.mapping, _env(kind).spec, 0)
    generator = torch.Generator().manual_seed(0)
    observation = Observation(
        state={"state": torch.rand(2, policy.spec.state_dim, generator=generator)},
        images={"main": torch.randint(0, 256, (2, 84, 84, 3), generator=generator, dtype=torch.uint8)},
        instruction=["pick up the red cube", "pick up the blue cube"],
    )
    return _sum(policy.predict(observation), policy.spec, policy.state_dict())


_NAMED = (
    "{video: {main_images: video.main}, state: [{gr00t_key: state.hand, slice: [0, 3]},"
    " {gr00t_key: state.opening, slice: [3, 4]}]}"
)


def _make_named_dataset(folder: Path) -> None:
    """With what Isaac-GR00T calls the features."""
    _make_dataset(folder)
    parts = {"hand": {"start": 0, "end": 3}, "opening": {"start": 3, "end": 4}}
    video = {"main": {"original_key": "observation.images.main"}}
    content = {"state": parts, "action": {"action": {"start": 0, "end": 4}}, "video": video}
    (folder / MODALITY_PATH).write_text(json.dumps(content))


def _make_recording(folder: Path) -> None:
    """In the layout of Isaac Lab's recorder."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with h5py.File(folder / "demos.hdf5", "w") as file:
        file.attrs["format_version"] = 1
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": _RECORDED, "sim_args": {"dt": 0.01, "decimation": 5}})
        for index in range(2):
            episode = data.create_group(f"demo_{index}")
            episode.attrs.update({"num_samples": 4, "success": True})
            episode["actions"] = rng.uniform(-1, 1, (4, 7)).astype(np.float32)
            for name, width in (("eef_pos", 3), ("eef_quat", 4), ("gripper_pos", 2)):
                episode[f"obs/{name}"] = rng.normal(size=(4, width)).astype(np.float32)
            for name in ("table_cam", "wrist_cam"):
                episode[f"obs/{name}"] = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)


def _read_recording(folder: Path) -> str:
    """As `convert`; what it prints that it left out is said."""
    output = folder.with_name(f"{folder.name}_converted")
    try:
        _, report = convert(_recorded_experiment().config, [folder / "demos.hdf5"], output)
        for line in omission_lines(report.omissions):
            logging.getLogger("regrasp.convert").warning(line)
        dataset = DemonstrationDataset(output)
        columns = dataset.load_columns(["observation.state", "action"])
        images = [dataset.load_images(camera) for camera in dataset.cameras]
        return _sum(columns, images, dataset.fps, dataset.tasks, json.loads((output / SOURCES_PATH).read_text()))
    finally:
        shutil.rmtree(output, ignore_errors=True)


@functools.cache
def _recorded_experiment() -> LoadedConfig:
    return load_config("isaaclab_stack_cube_ppo_groot", [])


def _make_rlinf_weights(folder: Path) -> None:
    folder.mkdir()
    critic = {"action_head.value_head.mlp.0.weight": torch.ones(4, 4)}
    torch.save(_policy().state_dict() | critic, folder / "full_weights.pt")


def _read_rlinf_weights(folder: Path) -> str:
    """As `play --rl_model_path`."""
    policy = regrasp.load_policy(_WRITTEN / "groot" / "base")
    overlay_rl_weights(policy, folder / "full_weights.pt")
    return _sum(policy.state_dict())


def _make_dataset(folder: Path) -> None:
    rng = np.random.default_rng(0)
    old = DemonstrationDataset(_WRITTEN / "groot" / "demos")
    states, actions = (old.load_columns([name])[name] for name in ("observation.state", "action"))
    shape = (32, 32, 3)
    features = demonstration_features(states.shape[1], actions.shape[1], [shape])
    origin = json.loads((old.root / SOURCES_PATH).read_text())
    with DatasetWriter(folder, fps=10, robot_type="toy", features=features, sources=origin) as writer:
        for length, task in ((6, "pick up the red cube"), (4, "pick up the blue cube"), (5, "pick up the red cube")):
            images = rng.integers(0, 256, (length, *shape), np.uint8)
            columns = demonstration_columns(states[:length], actions[:length], [images])
            writer.add_episode(columns, task, success=True)


def _read_dataset(folder: Path, *overrides: str) -> str:
    """As `sft --data`."""
    config = load_config("pick_cube_ppo_groot", [*_SMALL, *_OWN["groot"], *overrides]).config
    assert config.sft is not None
    dataset = DemonstrationDataset(folder)
    warnings = check_sources(dataset, config)
    features = find_features(dataset, config)
    frames, _ = load_frames(_policy(), features, config.env.train.mapping, config.sft)
    return _sum(dict(frames.inputs.items()), frames.actions, frames.valid, warnings, dataset.fps)


def _read_named_dataset(folder: Path) -> str:
    """As `sft --data` of an experiment that has Isaac-GR00T's names."""
    return _read_dataset(folder, *(f"env.{name}.mapping.gr00t_mapping={_NAMED}" for name in ("train", "eval")))


@functools.cache
def _policy() -> Policy:
    return regrasp.load_policy(_WRITTEN / "groot" / "base")


def _make_training(folder: Path) -> None:
    folder.mkdir()
    loaded = _experiment("mlp")
    (folder / CONFIG_FILE).write_text(loaded.to_yaml())
    (folder / COMMAND_FILE).write_text("regrasp train\n")
    with contextlib.redirect_stdout(io.StringIO()):
        assert train(loaded, folder)
    (folder / LOCK_FILE).unlink()


def _make_training_report(folder: Path) -> None:
    _make_training(folder)
    shutil.rmtree(folder / "small")


def _make_evaluation(folder: Path) -> None:
    loaded = _experiment("mlp")
    (folder / VIDEO_FOLDER).mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(loaded.to_yaml())
    (folder / COMMAND_FILE).write_text("regrasp play\n")
    with contextlib.redirect_stdout(io.StringIO()):
        result = play(loaded, folder, PlayOptions(kind="expert", num_videos=0))
    for index, episode in enumerate(result.episodes):
        (folder / VIDEO_FOLDER / video_name(index, episode.success)).write_bytes(_VIDEO)


def _make_quickstart(folder: Path) -> None:
    _make_evaluation(folder)
    _make_training_report(folder / "train")
    summary = json.loads((folder / EVALUATION_FILE).read_text())
    episodes = [json.loads(line) for line in (folder / EPISODES_FILE).read_text().splitlines()]
    names = ("instruction", "success", "seed")
    videos = [
        {
            **{name: episode[name] for name in names},
            "group": "base",
            "file": f"{VIDEO_FOLDER}/{video_name(episode['episode'], episode['success'])}",
        }
        for episode in episodes
    ]
    content = {
        "task": "Regrasp-Pick-Cube-v0",
        "seed": 0,
        "base": summary,
        "finetuned": summary,
        "stage_seconds": {"collect": 1.5, "train": 3.0},
        "total_seconds": 4.5,
        "model": "train/small/checkpoints/global_step_2/model",
        "videos": videos,
        "versions": versions(),
        "command": "regrasp quickstart",
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(content))
    for name in (EVALUATION_FILE, EPISODES_FILE, COMMAND_FILE):
        (folder / name).unlink()


def _read_report(folder: Path) -> str:
    """As `report`. The page is titled by the folder's name, and shows the texts of files as they are."""
    page = report_run(folder, folder.with_name("report.html")).read_text()
    return _sum(re.sub("<pre.*?</pre>", "", page, flags=re.DOTALL).replace(folder.name, "run"))


def _make_checkpoint(folder: Path) -> None:
    run = folder.with_name("run_of_checkpoint")
    _make_training(run)
    (run / "small" / "checkpoints" / "global_step_2").rename(folder)
    shutil.rmtree(run)


def _read_checkpoint(folder: Path) -> str:
    """As `train --resume_dir`."""
    checkpoint = checkpoint_to_resume(folder)
    state = read_run_state(checkpoint)
    engine = _engine()
    engine.load(checkpoint)
    parts = (engine.policy.state_dict(), engine.learner.state_dict(), engine.rollouts._stages[0].state_dict())
    return _sum(checkpoint.step, sorted(checkpoint.frozen_names), state, *parts)


def _match_manifest(folder: Path) -> None:
    """Have the manifest say what lies there now, as one would that was written after the damage."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    files = {name: describe(folder / name) for name in names if name != MANIFEST}
    if not (folder / MANIFEST).is_dir():
        (folder / MANIFEST).write_bytes(encode(Manifest(2, files)))


def _make_configuration(folder: Path) -> None:
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(yaml.safe_load(_experiment("groot").to_yaml())))


def _read_configuration(folder: Path) -> str:
    """As `train --dry_run --config_name FILE`."""
    loaded = load_config(str(folder / CONFIG_FILE))
    for name, env in vars(loaded.config.env).items():
        preflight(env, name, loaded.config.actor.model.action_dim)
    return _sum(loaded.to_yaml(), loaded.warnings)


def _surfaces() -> Iterator[Surface]:
    for kind, share in (("mlp", 0.12), ("groot", 0.04)):
        sealed, plain = (functools.partial(_make_model, kind, checksums) for checksums in (True, False))
        read = functools.partial(_read_model, kind)
        yield Surface(f"{kind} model", sealed, read, share, has_checksums=True)
        yield Surface(f"{kind} model without checksums", plain, read, share)
    yield Surface("dataset", _make_dataset, _read_dataset, 0.16)
    yield Surface("names in meta/modality.json", _make_named_dataset, _read_named_dataset, 0.06, files="modality.json")
    yield Surface("recording", _make_recording, _read_recording, 0.12)
    yield Surface("RLinf's full_weights.pt", _make_rlinf_weights, _read_rlinf_weights, 0.06, has_checksums=True)
    yield Surface("checkpoint", _make_checkpoint, _read_checkpoint, 0.12, has_checksums=True)
    forged = "checkpoint with its manifest to match"
    yield Surface(forged, _make_checkpoint, _read_checkpoint, 0.12, after=_match_manifest)
    yield Surface("run of training", _make_training_report, _read_report, 0.06)
    yield Surface("run of evaluation", _make_evaluation, _read_report, 0.1)
    yield Surface("run of quickstart", _make_quickstart, _read_report, 0.06)
    yield Surface("configuration", _make_configuration, _read_configuration, 0.06)


SURFACES = tuple(_surfaces())
