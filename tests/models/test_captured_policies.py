"""Policies whose decisions and updates a GPU replays (`actor.model.compile: graphs`), against plain ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from openvla_layout import write_openvla, write_regression_head
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.ppo import PpoConfig
from regrasp.experiment import ActorConfig, OptimConfig
from regrasp.learner.compilation import CapturedMethod, capture_policy, capture_updates
from regrasp.learner.learner import Learner
from regrasp.models.contract import Policy
from regrasp.models.mlp.settings import MlpModelConfig
from regrasp.models.openvla.checkpoint import load_openvla
from regrasp.models.openvla.settings import OpenVlaModelConfig, OpenVlaOftModelConfig, SamplingConfig
from regrasp.models.registry import AnyModelConfig
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.inference import Inference
from rl_toys import ACTION_DIM, CHUNK, mlp_policy, never, observation

ROWS, BATCH = 8, 4
WARM = SamplingConfig(top_k=30)
OPENVLA: dict[str, OpenVlaModelConfig] = {
    "token by token": OpenVlaModelConfig(action_dim=7, num_action_chunks=2),
    "top_k": OpenVlaModelConfig(action_dim=7, sampling=WARM),
    "in parallel": OpenVlaOftModelConfig(action_dim=7, num_action_chunks=2),
    "gaussian": OpenVlaOftModelConfig(action_dim=7, num_action_chunks=2, action_head="gaussian", initial_std=0.2),
}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def decisions(policy: Policy, device: torch.device, update: int) -> Decisions:
    """A rollout of one chunk for each row."""
    inference = Inference(policy, 0, "train", device=device, keep_features=True)
    decision = inference.decide(observation(ROWS, update), [(row, update, 0) for row in range(ROWS)])
    chunk = decision.action.actions.shape[1]
    buffer = RolloutBuffer(holds_features=True)
    buffer.add(
        0,
        torch.arange(ROWS),
        decision.inputs,
        decision.action,
        torch.arange(ROWS * chunk).view(ROWS, chunk) / (ROWS * chunk),
        torch.full((ROWS,), chunk),
        torch.ones(ROWS, dtype=torch.bool),
        version=update,
    )
    return buffer.build()


def trained(
    policy: Policy, model: AnyModelConfig, *, is_captured: bool
) -> tuple[list[dict[str, float]], list[TensorDict], dict[str, Tensor]]:
    """Metrics and decisions of three updates, and the weights after them."""
    device = torch.device("cuda")
    algorithm = PpoConfig(update_epoch=2).build()
    # With a large epsilon AdamW's step follows the gradient, and not the sign of a small one.
    optim = OptimConfig(lr=0.01, value_lr=0.01, adam_eps=1.0)
    actor = ActorConfig(model=model, micro_batch_size=BATCH, global_batch_size=BATCH, optim=optim)
    learner = Learner(policy.to(device), algorithm, actor, num_updates=3, seed=0, device=device)
    if is_captured:
        capture_policy(policy, {ROWS, BATCH}, device)
        plain = learner.backward
        capture_updates(learner, BATCH, compiles=False)
        assert learner.backward is not plain
    metrics, traces = [], []
    for update in range(3):
        rollout = decisions(policy, device, update)
        traces.append(rollout.record.clone().cpu())
        metrics.append(learner.update(algorithm.prepare(rollout), update, never))
    recorded = [name for name in policy.capturable if isinstance(getattr(policy, name), CapturedMethod)]
    assert recorded == ([*policy.capturable] if is_captured else [])
    return metrics, traces, {name: value.cpu() for name, value in policy.state_dict().items()}


def assert_alike(build: Callable[[], Policy], model: AnyModelConfig) -> None:
    metrics, traces, expected = trained(build(), model, is_captured=False)
    found_metrics, found_traces, found = trained(build(), model, is_captured=True)
    for update, (own, others) in enumerate(zip(found_metrics, metrics, strict=True)):
        assert own == pytest.approx(others, rel=1e-3, abs=1e-4), update
    for own, other in zip(found_traces, traces, strict=True):
        for name, value in other.items(include_nested=True, leaves_only=True):
            torch.testing.assert_close(own[name], value, rtol=1e-3, atol=1e-4, msg=str(name))
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", OPENVLA)
def test_openvla_replays_what_it_computes(name: str, tmp_path: Path) -> None:
    write_openvla(tmp_path / "model", dtype=torch.float32)
    settings = replace(OPENVLA[name], value_head_hidden=(8,))
    if name == "gaussian":
        write_regression_head(tmp_path / "model")
    assert_alike(lambda: load_openvla(tmp_path / "model", settings), settings)


def test_a_state_policy_replays_what_it_computes() -> None:
    assert_alike(mlp_policy, MlpModelConfig(action_dim=ACTION_DIM, num_action_chunks=CHUNK))
