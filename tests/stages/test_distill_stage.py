"""A model without a residual learns what one with it does."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from run_toys import groot_experiment

from regrasp.envs.contract import Observation
from regrasp.envs.registry import create_env
from regrasp.errors import UserError
from regrasp.experiment.load import LoadedConfig
from regrasp.models.config import ExportOptions
from regrasp.models.contract import Policy
from regrasp.models.groot.checkpoint import load_groot
from regrasp.models.groot.export import export
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.registry import load_policy
from regrasp.seeding import KeyedNoise
from regrasp.stages.distill import distill

SETTINGS = (
    "actor.model.add_value_head=false",
    "actor.model.add_q_head=true",
    "algorithm.adv_type=embodied_sac",
    "algorithm.loss_type=embodied_sac",
    "distill.num_episodes=24",
    "distill.rounds=2",
    "sft.steps=120",
    "sft.lr=2e-3",
)


def experiment(model: Path, *overrides: str) -> LoadedConfig:
    return groot_experiment(*SETTINGS, f"actor.model.model_path={model}", *overrides)


@pytest.fixture
def teacher(base_model: Path, tmp_path: Path) -> Path:
    """A model whose residual opens the gripper and lifts, whatever it sees."""
    policy = load_groot(base_model, experiment(base_model).config.actor.model)  # pyright: ignore[reportArgumentType]
    assert policy.residual is not None
    with torch.no_grad():
        policy.residual.body[-1].bias[:4] = torch.tensor([0.0, 0.0, 3.0, 3.0])  # pyright: ignore
    policy.requires_grad_(True)
    policy.save(tmp_path / "teacher")
    return tmp_path / "teacher"


def assert_is_plain(folder: Path, published: Path) -> None:
    student = load_policy(folder)
    assert isinstance(student, GrootPolicy)
    assert student.residual is None
    assert not (folder / "residual.json").exists()
    export(ExportOptions(folder, published))


def test_what_comes_out_is_a_plain_model(teacher: Path, tmp_path: Path) -> None:
    folder, loss = distill(experiment(teacher, "distill.num_episodes=6", "sft.steps=8").config, tmp_path / "student")
    assert 0 < loss < 10
    assert_is_plain(folder, tmp_path / "published")


@pytest.mark.full
def test_what_comes_out_is_a_plain_model_that_does_the_same(teacher: Path, base_model: Path, tmp_path: Path) -> None:
    folder, loss = distill(experiment(teacher).config, tmp_path / "student")
    assert 0 < loss < 10
    assert_is_plain(folder, tmp_path / "published")
    student, before, wanted = load_policy(folder), load_policy(base_model), load_policy(teacher)
    with contextlib.closing(create_env(experiment(teacher).config.env.train, "train", 4, 0)) as env:
        seen = env.reset(range(6), range(6))
    after, began = (distance(policy, wanted, seen) for policy in (student, before))
    assert after < 0.85 * began


@torch.no_grad()
def distance(policy: Policy, teacher: Policy, seen: Observation) -> float:
    """How badly the policy's flow fits what the teacher does."""
    features = policy.encode(policy.prepare(seen))
    rows = range(len(seen))
    wanted = teacher.act(features, KeyedNoise(7, "eval", [(row, 0, 0) for row in rows]), deterministic=True).actions
    noise = KeyedNoise(7, "eval", [(row, 0, 1) for row in rows])
    return float(policy.sft_loss(features, wanted, torch.ones(wanted.shape[:2], dtype=torch.bool), noise, 16))


@pytest.mark.parametrize("settings", [(), SETTINGS])
def test_a_plain_model_has_nothing_to_distill(base_model: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Not where the experiment would put a fresh actor beside its head either."""
    plain = groot_experiment(*settings, f"actor.model.model_path={base_model}").config
    with pytest.raises(UserError, match="nothing to distill"):
        distill(plain, tmp_path / "student")
    assert not (tmp_path / "student").exists()
