"""Environments of other packages, each in a Python of its own: every step, and whole commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_gymnasium_env import config

from regrasp.cli.main import main
from regrasp.envs.gymnasium.env import Gymnasium
from regrasp.envs.mapping_config import StateEntry
from regrasp.envs.process.seeds import seed31

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SEED, STEPS = 6, 12
_RAW = """
import json, sys
import gymnasium, numpy
sys.path.insert(0, {folder!r})
module, name, kwargs, seed, actions = json.loads(sys.argv[1])
__import__(module)
env = gymnasium.make(name, disable_env_checker=True, **kwargs)
rows = [env.reset(seed=seed)[0]]
rewards = []
for action in actions:
    observation, reward, *_ = env.step(numpy.array(action, numpy.float32))
    rows.append(observation)
    rewards.append(float(reward))
whole = lambda row: row if not isinstance(row, dict) else numpy.concatenate([row["observation"], row["desired_goal"]])
print(json.dumps([[float(x) for x in whole(row)] for row in rows]))
print(json.dumps(rewards))
"""


def interpreter(package: str) -> str:
    """The Python of a package's own environment; without it the test is skipped."""
    found = os.environ.get(f"REGRASP_TEST_{package.upper()}_PYTHON") or f"{sys.prefix}/{package}/bin/python"
    if not Path(found).exists():
        pytest.skip(f"{package.upper()} IS NOT TESTED: run scripts/install_gymnasium_tests.sh with a network")
    return found


CASES = [
    ("robotics", "fetch", "gymnasium_robotics", "FetchPickAndPlace-v4", {}, ("observation", "desired_goal")),
    ("metaworld", "metaworld", "metaworld_tasks", "MetaWorldTask-v0", {"task": "drawer-open-v3"}, ("observation",)),
]


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize(("package", "example", "module", "name", "kwargs", "states"), CASES)
def test_every_step_is_that_of_the_raw_environment(
    package: str,
    example: str,
    module: str,
    name: str,
    kwargs: dict[str, Any],
    states: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = interpreter(package)
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, 4)).astype(np.float32)
    said = json.dumps([module, name, kwargs, seed31(SEED), actions.tolist()])
    code = _RAW.format(folder=str(EXAMPLES / example))
    output = subprocess.run([python, "-c", code, said], capture_output=True, text=True, check=True).stdout
    observations, rewards = map(json.loads, output.splitlines()[-2:])

    monkeypatch.chdir(EXAMPLES / example)
    block = config(
        f"{module}:{name}", 1, mapping={"states": tuple(map(StateEntry, states))}, kwargs=kwargs, python=python
    )
    env = Gymnasium().create_env(block, "train", 1, 0)
    try:
        assert env.capabilities.seed_per_env
        seen = env.reset([0], [SEED])
        for number, action in enumerate(actions):
            assert np.allclose(seen.state["state"][0].numpy(), observations[number], atol=1e-6)
            step = env.step(torch.from_numpy(action)[None, None])
            assert step.rewards.item() == pytest.approx(rewards[number])
            seen = step.observation
        assert np.allclose(seen.state["state"][0].numpy(), observations[-1], atol=1e-6)
    finally:
        env.close()


@pytest.mark.full
@pytest.mark.slow
def test_meta_world_tells_that_it_ignores_its_seed() -> None:
    block = config(
        "metaworld:Meta-World/MT1",
        1,
        mapping={"states": (StateEntry("observation"),)},
        kwargs={"env_name": "reach-v3"},
        python=interpreter("metaworld"),
    )
    env = Gymnasium().create_env(block, "train", 1, 0)
    env.close()
    assert not env.capabilities.seed_per_env
    assert any("two resets with one seed" in note for note in env.spec.notes)


@pytest.mark.full
@pytest.mark.slow
def test_fetch_is_recorded_imitated_and_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOTICS_PYTHON", interpreter("robotics"))
    monkeypatch.chdir(EXAMPLES / "fetch")
    experiment = ["--config_name", "fetch_ppo_mlp.yaml"]
    small = ["env.train.total_num_envs=4", "env.eval.total_num_envs=4", "env.train.num_workers=1"]
    demos, base, few = f"{tmp_path}/demos", f"{tmp_path}/base", ["env.eval.num_episodes=4", "env.eval.num_workers=1"]
    assert main(["collect", *experiment, *small, "--num_demos", "6", "--output", demos]) == 0
    assert main(["sft", *experiment, "--data", demos, "--output", base, "sft.steps=100"]) == 0
    run = [
        *small,
        *few,
        "runner.max_epochs=1",
        "runner.val_check_interval=1",
        f"runner.logger.log_path={tmp_path}/logs",
    ]
    sizes = ["actor.micro_batch_size=52", "actor.global_batch_size=52"]
    assert main(["train", *experiment, "--model_path", base, *run, *sizes]) == 0
    assert main(["play", *experiment, *few, "--policy", "expert", f"runner.logger.log_path={tmp_path}/expert"]) == 0
    summary = json.loads(next((tmp_path / "expert").rglob("evaluation.json")).read_text())
    assert summary["success"] == 1.0


@pytest.mark.full
@pytest.mark.slow
def test_tasks_of_meta_world_are_played_and_recorded_by_their_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAWORLD_PYTHON", interpreter("metaworld"))
    monkeypatch.chdir(EXAMPLES / "metaworld")
    experiment = ["--config_name", "five_tasks_sac_groot.yaml", "env.train.num_workers=1", "env.eval.num_workers=1"]
    few = ["env.eval.num_episodes=8", "env.eval.total_num_envs=4", f"runner.logger.log_path={tmp_path}/logs"]
    assert main(["play", *experiment, *few, "--policy", "expert"]) == 0
    summary = json.loads(next((tmp_path / "logs").rglob("evaluation.json")).read_text())
    assert summary["success"] >= 0.75
    assert len(summary["per_instruction"]) >= 3
    assert main(["collect", *experiment, "--num_demos", "3", "--output", f"{tmp_path}/demos"]) == 0
