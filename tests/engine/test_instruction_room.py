"""An instruction that the model has no room for is found before anything is simulated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from regrasp.engine.policies import check_fit
from regrasp.envs.contract import ArraySpec, EnvSpec
from regrasp.envs.mapping_config import MappingConfig, StateEntry
from regrasp.errors import UserError
from rl_toys import groot_policy

LONG = "pick it up " * 20


def spec(*instructions: str) -> EnvSpec:
    raw: dict[str, Any] = {"policy/state": ArraySpec((3,), "float32"), "images/main": ArraySpec((28, 28, 3), "uint8")}
    return EnvSpec(
        task_id="Toy-v0",
        num_envs=1,
        raw_observations=raw,
        action_dim=2,
        instructions=instructions,
        step_seconds=0.1,
        max_episode_steps=4,
        state_dim=3,
        cameras=("main",),
    )


def test_the_tasks_own_words_and_those_of_the_mapping() -> None:
    policy = groot_policy()
    mapping = MappingConfig(main_images="images/main", states=(StateEntry("policy/state"),))
    check_fit(policy, mapping, spec("do it"))
    with pytest.raises(UserError, match="room for"):
        check_fit(policy, mapping, spec("do it", LONG))
    check_fit(policy, replace(mapping, task_description="do it"), spec(LONG))
    with pytest.raises(UserError, match="room for"):
        check_fit(policy, replace(mapping, task_description=LONG.strip()), spec("do it"))
