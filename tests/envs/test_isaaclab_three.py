"""Isaac Lab 3.x by a stand-in for its documented interface: its features are detected and used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from lab_envs import HERE, LAB_PYTHON, lab_env, needs_lab, states

from regrasp.envs.mapping_config import MappingConfig
from regrasp.errors import UserError

pytestmark = needs_lab
STAND_IN = HERE / "isaaclab3_stand_in"
MAPPING = MappingConfig(task_description="push", states=states("x", "resets"))


@pytest.mark.parametrize(
    ("task", "extra_resets"), [pytest.param("Point-Freezing", 0, marks=pytest.mark.full), ("Point-Final", 2)]
)
def test_a_finished_environment_shows_its_last_observation(task: str, extra_resets: int) -> None:
    env = lab_env(task, MAPPING, stand_in=STAND_IN, num_envs=2, init={"presets": ("physics=newton_mjwarp",)})
    try:
        assert env.spec.quaternions == "xyzw"
        before = env.reset([0, 1], [1, 2]).state["state"]
        step = env.step(torch.tensor([0.2, 0.1])[:, None, None].expand(2, 4, 1))
        assert step.num_executed.tolist() == [2, 4]
        assert step.success.tolist() == [True, True]
        assert torch.allclose(step.rewards, torch.tensor([[0.2, 0.4, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]]))
        assert torch.allclose(step.observation.state["state"], before + torch.tensor([[0.4, 0.0], [0.4, 0.0]]))
        # Without freezing, the two held steps finish one more episode, which nobody sees.
        again = env.reset([0], [3]).state["state"]
        assert again[0].tolist() == [0.0, before[0, 1] + 1 + extra_resets]
    finally:
        env.close()


def test_an_unknown_task_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="Isaac Lab has no such task") as caught:
        lab_env("Point-Frezing", MAPPING, stand_in=STAND_IN)
    assert caught.value.key == "env.train.init_params.id"
    assert "Point-Freezing" in (caught.value.expected or "")


def test_the_simulators_process_needs_numpy_only() -> None:
    allowed = {"numpy", "regrasp", *sys.stdlib_module_names}
    code = """
import sys
before = set(sys.modules)
import regrasp.envs.isaaclab.child.main, regrasp.envs.process.child
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")}
    answer = subprocess.run([LAB_PYTHON, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert set(answer.stdout.split()) <= allowed
