"""Vector environments for the tests, and a look at their processes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from regrasp.envs.config import EnvConfig, InitParams, TimeoutsConfig
from regrasp.envs.contract import Observation, Step, VecEnv
from regrasp.envs.mapping_config import MappingConfig, StateEntry
from regrasp.envs.mujoco.backend import require_backend
from regrasp.envs.process.vector import RemoteVecEnv

TOY = "toy"
PICK = "Regrasp-Pick-Cube-v0"
STACK = "Regrasp-Stack-Cube-v0"
TASKS = (TOY, PICK, STACK)
HERE = str(Path(__file__).parent)


def entries(*keys: str) -> tuple[StateEntry, ...]:
    return tuple(StateEntry(key) for key in keys)


TOY_MAPPING = MappingConfig(
    main_images="main", extra_view_images=("left", "right"), states=entries("position", "clock")
)
CUBE_MAPPING = MappingConfig(
    main_images="front_camera",
    extra_view_images=("wrist_camera",),
    states=entries("gripper_position", "gripper_opening", "object_positions"),
)
CUBE_STATES = MappingConfig(states=entries("gripper_position", "gripper_opening", "object_positions", "target_one_hot"))


class KeepingVecEnv(RemoteVecEnv):
    """Gives observations that outlast the next call, for tests that compare them later."""

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int]) -> Observation:
        return super().reset(env_ids, seeds).clone()

    def end_step(self) -> Step:
        step = super().end_step()
        frames = None if step.frames is None else step.frames.clone()
        return replace(step, observation=step.observation.clone(), frames=frames)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> Observation:
        return super().load_state_dict(state).clone()


def make_env(
    task: str = TOY,
    num_envs: int = 3,
    num_workers: int = 1,
    *,
    max_chunk: int = 4,
    mapping: MappingConfig | None = None,
    limit: int | None = None,
    ignore_terminations: bool = False,
    timeouts: TimeoutsConfig | None = None,
    python: str | None = None,
    name: str = "train",
    kind: type[RemoteVecEnv] = KeepingVecEnv,
    **toy: Any,
) -> RemoteVecEnv:
    settings: dict[str, Any] = {"max_episode_steps": limit or 12, **toy}
    environment: Mapping[str, str] = {"PYTHONPATH": HERE}
    factory = "toy_simulator:create"
    if task != TOY:
        settings |= {"task_id": task}
        environment = {"MUJOCO_GL": require_backend()}
        factory = "regrasp.envs.mujoco.simulator:create"
    config = EnvConfig(
        env_type="toy",
        total_num_envs=num_envs,
        max_episode_steps=limit or 12,
        init_params=InitParams(id=task),
        mapping=mapping or (TOY_MAPPING if task == TOY else CUBE_MAPPING),
        ignore_terminations=ignore_terminations,
        num_workers=num_workers,
        timeouts=timeouts or TimeoutsConfig(60.0, 30.0, 30.0),
        python=python,
    )
    return kind(config, name, max_chunk, factory=factory, settings=settings, environment=environment)


def worker_pids(env: VecEnv) -> list[int]:
    assert isinstance(env, RemoteVecEnv)
    return [worker.pid for worker in env._workers]


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(pids: list[int], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def random_actions(seed: int, steps: int, num_envs: int = 1, action_dim: int = 4) -> torch.Tensor:
    """(num_envs, steps, action_dim)."""
    return torch.rand(num_envs, steps, action_dim, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_same_observation(ours: Observation, theirs: Observation) -> None:
    for part, other in ((ours.images, theirs.images), (ours.state, theirs.state)):
        assert list(part) == list(other)
        assert all(torch.equal(part[name], other[name]) for name in part), list(part)
    assert ours.instruction == theirs.instruction


def assert_same_step(ours: Step, theirs: Step) -> None:
    assert_same_observation(ours.observation, theirs.observation)
    for name in ("rewards", "num_executed", "terminated", "truncated", "success"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.info.keys() == theirs.info.keys()
    assert all(torch.equal(ours.info[name], theirs.info[name]) for name in ours.info)
