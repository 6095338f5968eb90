"""Training steps of RLinf's own runner and workers on Regrasp's environments; and the same file in Regrasp."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from rlinf_python import HERE, SOURCES, interpreter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lab_python import LAB_PYTHON, STAND_IN, needs_lab
from regrasp.experiment.load import load_config

CUBE, POINT = HERE / "rlinf_pick_cube_ppo_mlp.yaml", HERE / "rlinf_point_ppo_mlp.yaml"
OLDER_CUBE = HERE / "rlinf_02_pick_cube_ppo_mlp.yaml"
NUM_STEPS, NUM_ENVS = 3, 8
MEASURES = {
    "env/return",
    "eval/return",
    "rollout/advantages_max",
    "train/actor/grad_norm",
    "train/actor/policy_loss",
    "train/critic/value_loss",
}


def run_rlinf(version: str, file: Path, overrides: list[str]) -> subprocess.CompletedProcess[str]:
    """Train in RLinf's Python, on a Ray cluster of its own on loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="rlinf-") as folder:  # pytest's folders are too long for Ray's sockets
        environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join(map(str, (SOURCES, HERE / "rlinf_cpu"))),
            "RLINF_EXT_MODULE": "regrasp.integrations.rlinf",
            "RLINF_CONFIG_FILE": str(file),
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray keeps the loopback address
            "RAY_worker_niceness": "0",
        }
        return subprocess.run(
            [interpreter(version), str(HERE / "rlinf_training.py"), str(file), *overrides],
            capture_output=True,
            text=True,
            env=environment,
            timeout=480,
            check=False,
        )


@pytest.fixture
def lab_python(tmp_path: Path) -> Path:
    """Isaac Lab's interpreter with the stand-in for Isaac Sim, which RLinf's own processes must not import."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={STAND_IN} exec {LAB_PYTHON} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "file", "limit"),
    [("0.2", OLDER_CUBE, 24), ("0.3.0", CUBE, 24), pytest.param("0.3.0", POINT, 8, marks=needs_lab)],
)
def test_rlinfs_runner_trains(version: str, file: Path, limit: int, lab_python: Path, tmp_path: Path) -> None:
    """Every step changes the weights; what RLinf logs is finite, and its episodes are as long as the block says."""
    logs = tmp_path / "logs"
    own = [f"env.{name}.python={lab_python}" for name in ("train", "eval")] if file == POINT else []
    result = run_rlinf(version, file, [f"runner.logger.log_path={logs}", f"runner.max_epochs={NUM_STEPS}", *own])
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-8000:]
    assert "extension module" not in output, "RLinf tells of one that fails and goes on"

    saved = [
        torch.load(
            logs / f"pick_cube/checkpoints/global_step_{step}/actor/model_state_dict/full_weights.pt", weights_only=True
        )
        for step in range(1, NUM_STEPS + 1)
    ]
    for before, after in itertools.pairwise(saved):
        for name, weights in after.items():
            assert weights.isfinite().all(), name
            assert not torch.equal(weights, before[name]), name

    events = EventAccumulator(str(logs / "tensorboard"))
    events.Reload()
    measured = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert measured.keys() >= MEASURES
    for tag, values in measured.items():
        assert len(values) == NUM_STEPS, tag
        assert torch.tensor(values).isfinite().all(), tag
    for name in ("env", "eval"):
        assert measured[f"{name}/episode_len"] == [limit] * NUM_STEPS
        assert measured[f"{name}/num_trajectories"] == [NUM_ENVS] * NUM_STEPS


@pytest.mark.parametrize(("file", "env_type"), [(CUBE, "mujoco"), (OLDER_CUBE, "mujoco"), (POINT, "isaaclab")])
def test_the_files_for_rlinf_are_experiments_here_too(file: Path, env_type: str) -> None:
    loaded = load_config(str(file), [])
    env = loaded.config.env
    assert env.train.env_type == env.eval.env_type == env_type
    assert env.train.mapping.states
    assert loaded.config.actor.model.model_type == "mlp"
    assert not any("env_type" in warning for warning in loaded.warnings), "both have to be given for RLinf"
