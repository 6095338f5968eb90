"""The PPO loss as one function of tensors: it compiles as a whole, alone and with the passes of an update."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from regrasp.algorithms.ppo import PpoConfig
from regrasp.learner.compilation import capture_updates, num_compilations
from regrasp.learner.precision import apply_precision
from regrasp.models.contract import Evaluation
from rl_toys import groot_policy, never, rollout_of, weights, worker

SIZE = 8
INDUCTOR = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")]
CHUNK = {"logprob_type": "chunk_level"}
TOKEN = {"logprob_type": "token_level", "entropy_bonus": 0.1, "clip_ratio_c": 3.0, "value_clip": None}
ACTION = {"logprob_type": "action_level", "kl_beta": 0.2, "kl_penalty": "low_var_kl"}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        pytest.param("eager", CHUNK, id="chunk-eager"),
        pytest.param("eager", TOKEN, id="token-eager"),
        pytest.param("eager", ACTION, id="action-eager"),
        pytest.param("inductor", CHUNK, id="chunk-inductor", marks=[*INDUCTOR, pytest.mark.full]),
        pytest.param("inductor", TOKEN, id="token-inductor", marks=[*INDUCTOR, pytest.mark.full]),
        pytest.param("inductor", ACTION, id="action-inductor", marks=[*INDUCTOR, pytest.mark.full]),
    ],
)
def test_compiled_losses_are_the_plain_ones(backend: str, settings: dict[str, Any]) -> None:
    policy = groot_policy(noise_method="flow_noise" if "entropy_bonus" in settings else "flow_sde")
    rollout = rollout_of(policy, SIZE, uneven=True)
    evaluation = policy.evaluate(rollout.table, rollout.trace)
    assert evaluation.values is not None
    values = evaluation.values.detach()
    start = evaluation.log_probs.detach() + 0.1 if "kl_beta" in settings else None
    objective = PpoConfig(**settings).build().objective
    compiled = torch.compile(objective, fullgraph=True, dynamic=False, backend=backend)

    def run(function: Any, scale: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        log_probs = (evaluation.log_probs.detach() * scale).requires_grad_()
        of_loss = Evaluation(log_probs, values, evaluation.entropy)
        loss, metrics = function(of_loss, rollout.columns, torch.tensor([0.5, 0.25, 0.5]), start)
        (gradient,) = torch.autograd.grad(loss, log_probs)
        return loss, metrics, gradient

    before = num_compilations()
    for scale in (1.0, 1.01):
        (loss, metrics, gradient), (found, found_metrics, found_gradient) = run(objective, scale), run(compiled, scale)
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(found_gradient, gradient)
        assert found_metrics.keys() == metrics.keys()
        for name, value in metrics.items():
            torch.testing.assert_close(found_metrics[name], value, msg=name)
        assert ("actor/kl_to_start" in metrics) == (start is not None)
        assert ("actor/entropy_loss" in metrics) == (evaluation.entropy is not None)
    assert metrics["actor/max_ratio_error"] > 0
    assert num_compilations() == before + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro", [SIZE, SIZE // 2])
def test_captured_updates_are_those_of_plain_passes(precision: str, micro: int) -> None:
    results = []
    for is_captured in (False, True):
        policy = groot_policy()
        rollout = rollout_of(policy, 2 * SIZE).to(torch.device("cuda"))
        model: Any = SimpleNamespace(precision=precision, trainable="head")
        apply_precision(policy.cuda(), model, torch.device("cuda"))
        # With a large epsilon AdamW's step follows the gradient, and not the sign of a small one.
        optim = {"adam_eps": 1.0, "lr": 1.0, "value_lr": 1.0}
        actor = worker(policy, batch=SIZE, micro=micro, precision=precision, optim=optim, device="cuda")
        if is_captured:
            capture_updates(actor, micro)
        results.append((actor.update(rollout, 0, never), weights(policy)))
    (metrics, expected), (found_metrics, found) = results
    assert found_metrics == pytest.approx(metrics, rel=2e-2, abs=2e-3)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-4)
