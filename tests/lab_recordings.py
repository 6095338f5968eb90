"""Recordings in the layout of Isaac Lab's recorder: written here, or by the wheel's own handler in its own process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lab_python import LAB_PYTHON, STAND_IN

ENV_NAME = "Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0"
SIM_ARGS = {"dt": 0.01, "decimation": 5, "render_interval": 5, "num_envs": 1}
"""20 steps per second."""
IMAGE = (16, 20)
ACTION_DIM = 7

# Records every row through Isaac Lab's EpisodeData, as its recorder manager does.
_WITH_HANDLER = """
import json, sys
import h5py, torch
from isaaclab.utils.datasets import EpisodeData, HDF5DatasetFileHandler

def record(episode, node, path):
    for name, child in node.items():
        if isinstance(child, h5py.Group):
            record(episode, child, f"{path}/{name}" if path else name)
        else:
            for row in child[()]:
                episode.add(f"{path}/{name}" if path else name, torch.as_tensor(row))

for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    handler = HDF5DatasetFileHandler()
    with h5py.File(source) as file:
        env_args = json.loads(file["data"].attrs["env_args"])
        handler.create(target, env_name=env_args.pop("env_name"))
        for name in sorted(file["data"], key=lambda name: int(name[5:])):
            group = file["data"][name]
            episode = EpisodeData()
            record(episode, group, "")
            episode.pre_export()
            if "success" in group.attrs:
                episode.success = bool(group.attrs["success"])
            handler.add_env_args(env_args)
            handler.write_episode(episode)
            handler.flush()
    handler.close()
"""


@dataclass
class Demo:
    """One recorded episode: arrays by path, such as `obs/eef_pos`."""

    arrays: dict[str, np.ndarray]
    success: bool | None = True
    attrs: dict[str, Any] = field(default_factory=dict)
    """In place of what the recorder would write."""

    def __getitem__(self, path: str) -> np.ndarray:
        return self.arrays[path]

    def but(self, changes: Mapping[str, np.ndarray | None], **attrs: Any) -> Demo:
        """The same with other arrays; None leaves one out."""
        arrays = {**self.arrays, **changes}
        return Demo({path: array for path, array in arrays.items() if array is not None}, self.success, attrs)


def demo(seed: int = 0, length: int = 6, success: bool | None = True) -> Demo:
    """An episode with the observations that the shipped Isaac Lab experiment names, and what else is recorded."""
    rng = np.random.default_rng(seed)

    def vector(width: int, rows: int = length) -> np.ndarray:
        return rng.normal(size=(rows, width)).astype(np.float32)

    arrays = {
        "actions": vector(ACTION_DIM),
        "processed_actions": vector(9),
        "obs/eef_pos": vector(3),
        "obs/eef_quat": vector(4),
        "obs/gripper_pos": vector(2),
        "obs/goal": np.full((length, 1), seed % 2),
        "obs/table_cam": rng.integers(0, 256, (length, *IMAGE, 3), np.uint8),
        "obs/wrist_cam": rng.integers(0, 256, (length, *IMAGE, 3), np.uint8),
        "obs/datagen_info/eef_pose/franka": rng.normal(size=(length, 4, 4)).astype(np.float32),
        "initial_state/articulation/robot/joint_position": vector(9, 1),
        "states/articulation/robot/joint_position": vector(9),
    }
    return Demo(arrays, success)


def write_recording(
    path: Path,
    demos: Sequence[Demo],
    *,
    env_name: str = ENV_NAME,
    sim_args: Mapping[str, Any] | None = SIM_ARGS,
) -> Path:
    """Write a recording as Isaac Lab's handler would."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        env_args = {"env_name": env_name, "type": 2} | ({} if sim_args is None or not demos else {"sim_args": sim_args})
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["total"] = sum(len(episode.arrays.get("actions", ())) for episode in demos)
        for index, episode in enumerate(demos):
            group = data.create_group(f"demo_{index}")
            attrs = {"num_samples": len(episode.arrays.get("actions", ()))}
            if episode.success is not None:
                attrs["success"] = episode.success
            for name, value in (attrs | episode.attrs).items():
                group.attrs[name] = value
            for name, array in episode.arrays.items():
                group.create_dataset(name, data=array, compression="gzip")
    return path


def record_with_handler(pairs: Mapping[Path, Path]) -> None:
    """Write each recording (key) again, to its value, by the wheel's own handler."""
    files = [str(file) for pair in pairs.items() for file in pair]
    environment = {**os.environ, "PYTHONPATH": str(STAND_IN), "OMP_NUM_THREADS": "1"}
    command = [str(LAB_PYTHON), "-c", _WITH_HANDLER, *files]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
