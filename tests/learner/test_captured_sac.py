"""Updates of soft actor-critic that a GPU replays, against plain ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.sac import Sac
from regrasp.algorithms.sac_config import EntropyTuningConfig, ReplayConfig, SacConfig
from regrasp.experiment import ActorConfig, OptimConfig
from regrasp.learner.compilation import CapturedBackward, capture_updates
from regrasp.learner.learner import Learner
from regrasp.models.config import QHeadConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.rollout.decisions import Decisions
from regrasp.seeding import KeyedNoise
from rl_toys import ACTION_DIM, CHUNK, groot_policy, never, observation

ROWS, BATCH = 8, 16
PROPOSALS = {
    "residual": {"proximity": (1.0, 0.1, 20), "monte_carlo": (0.5, 20), "critic_loss": "bce"},
    "dsrl": {"latent_targets": True, "proximity": (1.0, 0.1, 20)},
    "sac_flow": {"proximity": (1.0, 0.1, 20), "proximity_to": "start"},
    "selection": {"critic_loss": "bce"},
}
"""What annealed numbers and graphs of other passes each of them has."""


def stored(policy: GrootPolicy, number: int, device: torch.device) -> Decisions:
    """An update's episodes, of one decision each."""
    names = [(row, number, 0) for row in range(ROWS)]
    with torch.no_grad():
        features = policy.encode(policy.prepare(observation(ROWS)).to(device))
        trace = policy.act(features, KeyedNoise(5, "train", names)).trace
    zeros = torch.zeros(ROWS, dtype=torch.long)
    record = {
        "column": torch.arange(ROWS),
        "time": zeros,
        "decision": zeros,
        "rewards": torch.arange(ROWS * CHUNK).view(ROWS, CHUNK) / (ROWS * CHUNK),
        "num_executed": zeros + CHUNK,
        "ends": torch.ones(ROWS, dtype=torch.bool),
        "success": torch.ones(ROWS, dtype=torch.bool),
        "is_final": torch.zeros(ROWS, dtype=torch.bool),
        "log_probs": torch.zeros(ROWS, CHUNK, ACTION_DIM),
        "trace": trace,
    }
    return Decisions(features, TensorDict(record, batch_size=[ROWS]), are_encoded=True)


def trained(proposal: Any, device: torch.device, *, is_captured: bool) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Metrics of three updates, and all that they changed."""
    policy = groot_policy(
        proposal=proposal,
        add_q_head=True,
        add_value_head=False,
        q_head=QHeadConfig(hidden=(8,), num_q_heads=3),
        num_action_chunks=CHUNK,
    ).to(device)
    tuning = EntropyTuningConfig(alpha_type="fixed_alpha", initial_alpha=0.0)
    if proposal in ("dsrl", "sac_flow"):
        tuning = EntropyTuningConfig(alpha_type="softplus", initial_alpha=0.1)
    config = SacConfig(
        update_epoch=4, critic_actor_ratio=2, entropy_tuning=tuning, replay_buffer=ReplayConfig(capacity=100)
    )
    algorithm: Sac = replace(config, **PROPOSALS[proposal]).build()
    model = GrootModelConfig(action_dim=ACTION_DIM, num_action_chunks=CHUNK)
    # With a large epsilon AdamW's step follows the gradient, and not the sign of a small one.
    optim = OptimConfig(lr=0.1, value_lr=0.1, adam_eps=1.0)
    actor = ActorConfig(model=model, micro_batch_size=BATCH, global_batch_size=BATCH, optim=optim)
    learner = Learner(policy, algorithm, actor, num_updates=3, seed=0, device=device)
    if is_captured:
        capture_updates(learner, BATCH)
        assert isinstance(learner.backward, CapturedBackward)
    metrics = [learner.update(algorithm.prepare(stored(policy, update, device)), update, never) for update in range(3)]
    state = {name: value for name, value in algorithm.state_dict().items() if not name.startswith("replay.")}
    return metrics, {**state, **policy.state_dict()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_captured_updates_are_those_of_plain_passes(proposal: str) -> None:
    device = torch.device("cuda")
    metrics, expected = trained(proposal, device, is_captured=False)
    found_metrics, found = trained(proposal, device, is_captured=True)
    for update, (own, others) in enumerate(zip(found_metrics, metrics, strict=True)):
        assert own == pytest.approx(others, rel=1e-3, abs=1e-4), update
    for name, value in expected.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_experience_is_stored_where_features_come_from_after_a_resume_too() -> None:
    places = []
    policy = groot_policy(add_q_head=True, add_value_head=False, num_action_chunks=CHUNK)
    algorithm = SacConfig(update_epoch=1).build()
    algorithm.parameters(policy, "head")
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        prepared = algorithm.prepare(stored(policy.to(device), 0, device))
        step = next(iter(algorithm.minibatches(prepared, BATCH, torch.Generator().manual_seed(0))))
        places.append({value.device for value in step.decisions.table.values()})
        resumed = SacConfig(update_epoch=1).build()
        resumed.parameters(policy, "head")
        resumed.load_state_dict(algorithm.state_dict())
        algorithm = resumed
    assert places == [{torch.device("cpu")}, {torch.device("cuda", 0)}]
