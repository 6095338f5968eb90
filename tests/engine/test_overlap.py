"""Rollouts of one process that are made during an update: by the weights before it, and with the same numbers twice."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from regrasp.algorithms.base import Minibatch
from regrasp.engine.local import LocalEngine
from regrasp.envs.registry import create_env
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.models.config import QHeadConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.rollout.decisions import Decisions

OVERRIDES = (
    "actor.model.add_value_head=false",
    "actor.model.add_q_head=true",
    "algorithm.adv_type=embodied_sac",
    "algorithm.loss_type=embodied_sac",
    "algorithm.update_epoch=4",
    "algorithm.rollout_epoch=1",
    "algorithm.replay_buffer.capacity=64",
    "env.train.total_num_envs=4",
    "env.train.num_workers=1",
    "env.train.max_steps_per_rollout_epoch=8",
    "env.train.max_episode_steps=8",
    "actor.global_batch_size=8",
    "actor.micro_batch_size=8",
    "actor.optim.lr=0.05",
    "runner.max_epochs=4",
    "runner.val_check_interval=-1",
)
CPU = torch.device("cpu")
UPDATES = 4


def experiment(*overrides: str) -> ExperimentConfig:
    return load_config("pick_cube_ppo_mlp", [*OVERRIDES, *overrides]).config


@contextlib.contextmanager
def engine(config: ExperimentConfig, folder: Path) -> Iterator[LocalEngine]:
    with contextlib.closing(create_env(config.env.train, "train", max_chunk=4)) as env:
        policy = MlpPolicy(
            state_dim=16,
            action_dim=4,
            num_action_chunks=4,
            hidden=(16,),
            add_value_head=False,
            squashed=True,
            q_head=QHeadConfig(hidden=(16,)),
        )
        yield LocalEngine(config, policy, [env], 0, CPU, folder)


def actions_of(made: LocalEngine) -> torch.Tensor:
    assert made.decisions is not None
    return made.decisions.trace["actions"].clone()


def trained(config: ExperimentConfig, folder: Path) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """What was done in every update, and the weights after it."""
    done, weights = [], []
    with engine(config, folder) as made:
        for update in range(UPDATES):
            made.collect(update, lambda: False)
            done.append(actions_of(made))
            made.update(update, lambda: False)
            weights.append(copy.deepcopy(made.policy.state_dict()))
    return done, weights


def test_the_weights_before_the_update_act_and_a_second_run_is_the_same(tmp_path: Path) -> None:
    done, weights = trained(experiment("runner.max_staleness=1"), tmp_path)
    again, _ = trained(experiment("runner.max_staleness=1"), tmp_path)
    for own, other in zip(done, again, strict=True):
        assert own.equal(other)
    plain = experiment()
    with engine(plain, tmp_path) as made:
        start = copy.deepcopy(made.policy.state_dict())
        for update in range(UPDATES):
            made.policy.load_state_dict([start, start, *weights][update])
            made.collect(update, lambda: False)
            assert actions_of(made).equal(done[update])
            made.rollouts.updated()
    assert not done[1].equal(trained(plain, tmp_path)[0][1])


def broken(decisions: Decisions, size: int, generator: torch.Generator) -> Iterator[Minibatch]:
    raise RuntimeError("broken")


def test_where_an_update_fails_the_state_before_its_rollout_is_kept(tmp_path: Path) -> None:
    with engine(experiment("runner.max_staleness=1"), tmp_path) as made:
        made.collect(0, lambda: False)
        before = {name: value.clone() for name, value in made.rollouts.state().items()}
        made.algorithm.minibatches = broken
        with pytest.raises(RuntimeError, match="broken"):
            made.update(0, lambda: False)
        after = made.rollouts.state()
        assert before.keys() == after.keys()
        assert all(before[name].equal(after[name]) for name in before)
