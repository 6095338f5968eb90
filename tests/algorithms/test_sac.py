"""Soft actor-critic's losses against their definition, with torch's own distributions and plain networks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform

from regrasp.algorithms.base import ACTOR, Minibatch
from regrasp.algorithms.sac import ALPHA, CRITIC, Sac
from regrasp.algorithms.sac_config import EntropyTuningConfig, ReplayConfig, SacConfig
from regrasp.errors import TrainingHaltedError, UserError
from regrasp.models.config import QHeadConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.rollout.decisions import Decisions

GAMMA, SIZE, STATE, CHUNK, ACTION = 0.9, 24, 3, 2, 2


def policy(**settings: Any) -> MlpPolicy:
    sizes = QHeadConfig(hidden=(16, 16), num_q_heads=3, **settings)
    made = MlpPolicy(
        state_dim=STATE,
        action_dim=ACTION,
        num_action_chunks=CHUNK,
        hidden=(16,),
        add_value_head=False,
        squashed=True,
        q_head=sizes,
        seed=1,
    )
    generator = torch.Generator().manual_seed(2)
    for parameter in made.actor.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def decisions(seed: int = 0) -> Decisions:
    """Episodes of two decisions in each of 12 environments; of every third, the step limit cuts the return."""
    generator = torch.Generator().manual_seed(seed)
    envs, parts = SIZE // 2, []
    for time in range(2):
        parts.append([(env, time, time, False, time == 1) for env in range(envs)])
    parts.append([(env, 1, 2, True, True) for env in range(0, envs, 3)])
    rows = [row for part in parts for row in part]
    column, time, number, final, ends = map(torch.tensor, zip(*rows, strict=True))
    count = len(rows)
    record = TensorDict(
        {
            "column": column,
            "time": time,
            "decision": number,
            "rewards": torch.randn(count, CHUNK, generator=generator) * ~final[:, None],
            "num_executed": torch.where(final, 0, CHUNK),
            "ends": ends,
            "success": torch.zeros(count, dtype=torch.bool),
            "is_final": final,
            "log_probs": torch.zeros(count, CHUNK, ACTION),
            "trace": TensorDict(
                {"actions": torch.rand(count, CHUNK, ACTION, generator=generator) * 1.8 - 0.9}, batch_size=[count]
            ),
        },
        batch_size=[count],
    )
    states = TensorDict({"state": torch.randn(count, STATE, generator=generator)}, batch_size=[count])
    return Decisions(states, record, are_encoded=True)


def begun(made: MlpPolicy, **settings: Any) -> tuple[Sac, list[Minibatch]]:
    """An algorithm, and the minibatches of its first update."""
    algorithm = SacConfig(**{"gamma": GAMMA, "update_epoch": 2, **settings}).build()
    algorithm.parameters(made, "head")
    prepared = algorithm.prepare(decisions())
    return algorithm, list(algorithm.minibatches(prepared, 16, torch.Generator().manual_seed(3)))


def plain_critics(made: MlpPolicy, seen: Tensor, actions: Tensor) -> Tensor:
    """(E, B), one network after the other."""
    assert made.q_head is not None
    ensemble, outputs = made.q_head.critics, []
    for head in range(made.q_head.count):
        hidden = torch.cat([seen, actions], -1)
        for layer in range(2):
            hidden = hidden @ ensemble.weights[layer][head] + ensemble.biases[layer][head]
            norm = nn.functional.layer_norm(
                hidden, (16,), ensemble.gains[layer][head, 0], ensemble.shifts[layer][head, 0]
            )
            hidden = nn.functional.gelu(norm)
        outputs.append((hidden @ ensemble.weights[2][head] + ensemble.biases[2][head])[:, 0])
    return torch.stack(outputs)


def proposed(made: MlpPolicy, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions and their log-probabilities, by torch's distributions."""
    mean, log_std = made.actor(state).chunk(2, -1)
    normal = Normal(mean, (-5 + 3.5 * (log_std.tanh() + 1)).exp())
    before = normal.mean + normal.stddev * noise
    actions = before.tanh()
    return actions, (normal.log_prob(before) - TanhTransform().log_abs_det_jacobian(before, actions)).sum(-1)


@pytest.mark.parametrize("heads", ["min", "mean"])
@pytest.mark.parametrize("backup", [True, False])
def test_the_critics_loss_is_its_definition(heads: Any, backup: bool) -> None:
    made = policy()
    tuning = EntropyTuningConfig(initial_alpha=0.2)
    algorithm, (minibatch, *_) = begun(made, agg_q=heads, backup_entropy=backup, entropy_tuning=tuning)
    batch = minibatch.decisions
    loss, metrics = algorithm.loss(made, batch, torch.ones(1), (CRITIC,))
    following = batch.record["following"]
    actions, log_probs = proposed(made, following["inputs", "state"], batch["following_noise"])
    values = plain_critics(made, following["inputs", "state"], actions)
    value = values.min(0).values if heads == "min" else values.mean(0)
    target = batch["rewards"] + batch["discounts"] * (value - (0.2 * log_probs if backup else 0.0))
    judged = plain_critics(made, batch.table["state"], batch.trace["actions"].flatten(1))
    expected = (judged - target).square().mean()
    torch.testing.assert_close(metrics["sac/critic_loss"], expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.detach(), 3 * expected.detach(), rtol=1e-4, atol=1e-5)
    assert batch["discounts"].unique().tolist() == pytest.approx([0.0, GAMMA])
    loss.backward()
    assert all(parameter.grad is None for parameter in made.actor.parameters())


def test_actor_and_temperature_have_their_losses() -> None:
    made = policy()
    tuning = EntropyTuningConfig(initial_alpha=0.2, target_entropy=-1.5)
    algorithm, minibatches = begun(made, entropy_tuning=tuning)
    minibatch = minibatches[1]
    assert minibatch.groups == (ACTOR, ALPHA)
    batch = minibatch.decisions
    loss, metrics = algorithm.loss(made, batch, torch.ones(1), minibatch.groups)
    state = batch.table["state"]
    actions, log_probs = proposed(made, state, batch["noise"])
    alpha = torch.tensor(0.2)
    expected = (alpha * log_probs - plain_critics(made, state, actions).min(0).values).mean()
    of_alpha = -(alpha * (log_probs + -1.5)).mean()
    torch.testing.assert_close(metrics["sac/alpha_loss"], of_alpha.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.detach(), (expected + of_alpha).detach(), rtol=1e-4, atol=1e-4)
    (own,) = torch.autograd.grad(loss, [next(made.actor.parameters())], retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, [next(made.actor.parameters())])
    torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-5)
    loss.backward()
    assert made.q_head is not None
    assert all(parameter.grad is None for parameter in made.q_head.parameters())


def test_target_critics_follow_and_a_drawn_subset_judges() -> None:
    made = policy()
    algorithm = SacConfig(gamma=GAMMA, update_epoch=1, tau=0.25, critic_subsample_size=2).build()
    algorithm.parameters(made, "head")
    assert made.q_head is not None
    before = made.q_head.critics.weights[0].detach().clone()
    prepared = algorithm.prepare(decisions())
    for minibatch in algorithm.minibatches(prepared, 8, torch.Generator().manual_seed(0)):
        assert minibatch.decisions["heads"].shape == (8, 2)
        made.q_head.critics.weights[0].data.add_(1.0)
    followed = algorithm.state_dict()["target.critics.weights.0"]
    torch.testing.assert_close(followed, before + 0.25 * 2.0)


def test_critics_know_the_decisions_number_where_asked() -> None:
    made = policy(num_decisions=2)
    assert made.q_head is not None
    features = TensorDict({"state": torch.zeros(2, STATE)}, batch_size=[2])
    values = made.q_head(features, TensorDict({}, [2]), torch.tensor([0, 1]), torch.zeros(2, CHUNK * ACTION))
    assert (values[:, 0] != values[:, 1]).all()


def test_the_first_critic_steps_are_without_the_actor_and_rates_are_kept() -> None:
    _, minibatches = begun(
        policy(), update_epoch=1, updates_per_decision=0.5, critic_only_steps=5, critic_actor_ratio=2
    )
    groups = [minibatch.groups for minibatch in minibatches]
    assert groups[:5] == [(CRITIC,)] * 5
    assert groups.count((CRITIC,)) == 5 + SIZE // 2
    assert groups.count((ACTOR, ALPHA)) == SIZE // 2 // 2


def test_nothing_is_trained_before_there_is_enough() -> None:
    _, minibatches = begun(policy(), replay_buffer=ReplayConfig(min_decisions=SIZE + 1))
    assert minibatches == []


def test_probabilities_of_success_refuse_other_rewards() -> None:
    with pytest.raises(TrainingHaltedError, match="critic_loss=mse"):
        begun(policy(), critic_loss="bce", backup_entropy=False)


def test_a_policy_without_critics_is_refused_and_the_temperature_has_its_own_rate() -> None:
    algorithm = SacConfig().build()
    with pytest.raises(UserError, match="no critics"):
        algorithm.check(MlpPolicy(state_dim=2, action_dim=1))
    assert algorithm.optimizer_settings(ALPHA) == {"lr": 3e-4, "weight_decay": 0.0}
    assert algorithm.optimizer_settings(ACTOR) == {}


def test_what_is_restored_goes_on_alike() -> None:
    made = policy()
    whole, _ = begun(made, bootstrap_type="standard")
    resumed = dataclasses.replace(whole.config).build()
    resumed.parameters(made, "head")
    resumed.load_state_dict(whole.state_dict())
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    following = [
        [step.decisions for step in one.minibatches(one.prepare(decisions(1)), 8, torch.Generator().manual_seed(5))]
        for one in (whole, resumed)
    ]
    for one, other in zip(*following, strict=True):
        assert (one.record == other.record).all()
        assert (one.table == other.table).all()
    with pytest.raises(UserError, match="no stored experience"):
        resumed.load_state_dict({})
