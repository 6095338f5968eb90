"""Regrasp's extension in the real RLinf: its loader, its tables, and its environment worker's step."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from omegaconf import OmegaConf
from rlinf_python import HERE, SOURCES, interpreter

from regrasp.errors import UserError
from regrasp.integrations.rlinf.environment import env_block

DRIVER = HERE / "rlinf_driver.py"


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.2", "0.3.0"])
def test_the_released_rlinf_loads_the_extension_and_steps_its_environments(version: str) -> None:
    """The driver compares every observation, reward and end with those of a second `VecEnv`."""
    result = subprocess.run(
        [interpreter(version), str(DRIVER), "isaaclab_ppo_gr00t_assemble_trocar", "dex3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["stock_kept"]
    assert said["any_task"] == "RegraspEnv"
    assert said["converted"]["video.left_wrist_view"] == [2, 1, 8, 8, 3]
    assert said["states"]["state.right_arm"] == list(range(7, 14))
    assert len(said["action"]) == 5
    rests, begins_anew = said["played"]
    assert rests["ended"] == 3
    assert begins_anew["ended"] >= 6


def block(**changes: object) -> object:
    values = {
        "env_type": "isaaclab",
        "max_episode_steps": 10,
        "max_steps_per_rollout_epoch": 40,
        "video_cfg": {"save_video": True},
        "use_rel_reward": False,
        "init_params": {"id": "Isaac-Lift-v0", "task_description": "lift it"},
        "isaaclab": {"main_images": "front", "states": ["joint_pos"], "extra_view_images": None},
    }
    return OmegaConf.create({**values, **changes})


def test_a_block_of_rlinf_becomes_ours() -> None:
    found = env_block(block(), 5, "train")  # pyright: ignore[reportArgumentType]
    assert found.total_num_envs == 5
    assert found.mapping.task_description == "lift it"
    assert found.mapping.main_images == "front"
    assert not found.video_cfg.save_video, "RLinf records videos itself"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"isaaclab": {"main_image": "front"}}, "env.eval.mapping.main_image"),
        ({"regrasp_env_type": "isaac"}, "env.eval.env_type"),
        ({"max_episode_steps": 0}, "env.eval.max_episode_steps"),
    ],
)
def test_mistakes_in_it_are_explained(changes: dict[str, object], key: str) -> None:
    with pytest.raises(UserError) as caught:
        env_block(block(**changes), 5, "eval")  # pyright: ignore[reportArgumentType]
    assert caught.value.key == key
