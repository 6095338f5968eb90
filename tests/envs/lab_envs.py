"""Isaac Lab environments for the tests: the real wheel in its own environment, scene and physics stood in for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from lab_python import LAB_PYTHON, STAND_IN, needs_lab
from regrasp.envs.config import EnvConfig
from regrasp.envs.contract import VecEnv
from regrasp.envs.isaaclab.config import IsaacLabEnvConfig, IsaacLabInitParams, IsaacLabMapping
from regrasp.envs.mapping_config import MappingConfig, StateEntry
from regrasp.envs.registry import create_env

__all__ = ["HERE", "LAB_PYTHON", "STAND_IN", "lab_config", "lab_env", "needs_lab", "start", "states"]

HERE = Path(__file__).parent


def states(*keys: str) -> tuple[StateEntry, ...]:
    return tuple(StateEntry(key) for key in keys)


def lab_config(
    task: str,
    mapping: MappingConfig,
    *,
    num_envs: int = 3,
    limit: int = 10,
    python: Path | None = None,
    init: dict[str, Any] | None = None,
    **settings: Any,
) -> IsaacLabEnvConfig:
    return IsaacLabEnvConfig(
        env_type="isaaclab",
        total_num_envs=num_envs,
        max_episode_steps=limit,
        init_params=IsaacLabInitParams(id=task, device="cpu", **(init or {})),
        mapping=mapping if isinstance(mapping, IsaacLabMapping) else IsaacLabMapping(**vars(mapping)),
        python=str(python or LAB_PYTHON),
        **settings,
    )


def lab_env(task: str, mapping: MappingConfig, *, stand_in: Path = STAND_IN, **settings: Any) -> VecEnv:
    """Start a task of the stand-in package."""
    return start(lab_config(task, mapping, **settings), "train", stand_in)


def start(config: EnvConfig, name: Literal["train", "eval"], stand_in: Path = STAND_IN, seed: int = 0) -> VecEnv:
    """Start a configured task, with the stand-in on the simulator's path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(stand_in))
        patch.setenv("OMP_NUM_THREADS", "1")
        return create_env(config, name, 4, seed)
