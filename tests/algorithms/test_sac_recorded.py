"""Soft actor-critic's losses are those that stable-baselines3 computed on a recorded batch, with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.algorithms.sac import CRITIC
from regrasp.algorithms.sac_config import EntropyTuningConfig, SacConfig
from regrasp.models.config import QHeadConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.proposals import raw_log_std
from regrasp.models.q_head import QHead, StateReader
from regrasp.rollout.decisions import Decisions

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded" / "sb3_sac.json").read_text())
"""Of `recorded/record_sb3.py`."""


class RecordedCritics(QHead):
    """Critics with the networks of stable-baselines3: ReLU and no normalisation."""

    def __init__(self, weights: dict[str, list[Any]]) -> None:
        action, state = len(RECORDED["batch"]["actions"][0]), len(RECORDED["batch"]["observations"][0])
        super().__init__(StateReader(state), action, QHeadConfig(hidden=(8, 8), num_q_heads=2))
        self.networks = nn.ModuleList(network({n: v for n, v in weights.items() if n[:3] == f"qf{k}"}) for k in (0, 1))

    def judge(self, seen: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([critic(torch.cat([seen, actions], -1)).squeeze(-1) for critic in self.networks])


def network(weights: dict[str, list[Any]]) -> nn.Sequential:
    """Linear layers of recorded weights and biases in their order, with ReLU between them."""
    tensors, layers = [torch.tensor(value) for value in weights.values()], []
    for weight, bias in zip(tensors[::2], tensors[1::2], strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def recorded_policy() -> MlpPolicy:
    actor, batch = RECORDED["actor"], RECORDED["batch"]
    made = MlpPolicy(
        state_dim=len(batch["observations"][0]),
        action_dim=len(batch["actions"][0]),
        hidden=(8, 8),
        add_value_head=False,
        squashed=True,
        q_head=QHeadConfig(hidden=(8, 8)),
    )
    deviations = [raw_log_std(float(torch.tensor(value).exp())) for value in actor["log_std.bias"]]
    last_weight = [*actor["mu.weight"], *actor["log_std.weight"]]
    body = {name: value for name, value in actor.items() if name.startswith("latent_pi.")}
    made.actor = network({**body, "mu.weight": last_weight, "mu.bias": [*actor["mu.bias"], *deviations]})
    made.q_head = RecordedCritics(RECORDED["critic"])
    return made


def recorded_batch(noise: Tensor) -> Decisions:
    batch = {name: torch.tensor(value) for name, value in RECORDED["batch"].items()}
    size = len(noise[0])
    numbers = torch.zeros(size, dtype=torch.long)
    following = {
        "inputs": TensorDict({"state": batch["next_observations"]}, batch_size=[size]),
        "trace": TensorDict({}, batch_size=[size]),
        "decision": numbers,
    }
    record = {
        "trace": TensorDict({"actions": batch["actions"][:, None]}, batch_size=[size]),
        "following": TensorDict(following, batch_size=[size]),
        "rewards": batch["rewards"][:, 0],
        "discounts": RECORDED["gamma"] * (1 - batch["dones"][:, 0]),
        "decision": numbers,
        "noise": noise[0],
        "following_noise": noise[1],
        "heads": torch.arange(2).expand(size, 2),
    }
    states = TensorDict({"state": batch["observations"]}, batch_size=[size])
    return Decisions(states, TensorDict(record, batch_size=[size]), are_encoded=True)


def test_losses_are_those_of_stable_baselines3() -> None:
    policy, losses = recorded_policy(), RECORDED["losses"]
    tuning = EntropyTuningConfig(
        alpha_type="exp", initial_alpha=RECORDED["alpha"], target_entropy=RECORDED["target_entropy"]
    )
    algorithm = SacConfig(gamma=RECORDED["gamma"], entropy_tuning=tuning).build()
    live, policy.q_head = policy.q_head, RecordedCritics(RECORDED["critic_target"])
    algorithm.parameters(policy, "head")  # target critics begin as the critics are
    policy.q_head = live
    batch = recorded_batch(torch.tensor(RECORDED["noise"]))
    _, metrics = algorithm.loss(policy, batch, torch.ones(1), (CRITIC,))
    # Theirs is half the sum over two critics of mean squared errors, ours their mean. In the logarithm of the tanh's
    # slope they add 1e-6, which matters where an action is close to its limit.
    assert float(metrics["sac/critic_loss"]) == pytest.approx(losses["critic_loss"], rel=1e-3)
    _, metrics = algorithm.loss(policy, batch, torch.ones(1), ("actor", "alpha"))
    alpha = RECORDED["alpha"]
    actor_loss = float(metrics["sac/actor_loss"])
    assert actor_loss == pytest.approx(losses["actor_loss"], abs=1e-3)
    # Theirs has the logarithm of alpha as its factor, ours alpha, as RLinf's.
    expected = losses["ent_coef_loss"] / torch.tensor(alpha).log().item() * alpha
    assert float(metrics["sac/alpha_loss"]) == pytest.approx(expected, rel=1e-3)
