"""The fused step of bfloat16 weights against torch's AdamW with torch's clipping."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrasp.learner.optimizer import Steps, adamw

OPTIM: Any = SimpleNamespace(
    lr=1e-2, value_lr=3e-2, adam_beta1=0.9, adam_beta2=0.999, adam_eps=1e-5, weight_decay=0.1, clip_grad=1.0
)
HALVED = [(16, 64), (7,), (3, 5), (1,), (2, 4096), (33, 129)]
"""Shapes of weights with bfloat16 ones, aligned and not, of part of a kernel's block and of several."""
OWN = [(6,), (4, 8)]
"""Shapes of weights that have their gradient themselves."""
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@dataclass
class Pair:
    """Weights stepped by `Steps`, and equal ones stepped by torch alone."""

    optimizer: torch.optim.AdamW
    steps: Steps
    rounded: dict[nn.Parameter, nn.Parameter]
    plain: torch.optim.AdamW

    @property
    def weights(self) -> list[nn.Parameter]:
        return weights_of(self.optimizer)

    def set_gradients(self, seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for weight, other in zip(self.weights, weights_of(self.plain), strict=True):
            gradient = (scale * torch.randn(weight.shape, generator=generator)).to(weight.device, torch.bfloat16)
            other.grad = gradient.float()
            if weight in self.rounded:
                self.rounded[weight].grad = gradient
            else:
                weight.grad = gradient.float()

    def step(self, *, forbidden: bool = False) -> None:
        for group, settings in enumerate(self.plain.param_groups):
            expected = nn.utils.clip_grad_norm_(settings["params"], OPTIM.clip_grad)
            torch.testing.assert_close(self.steps.clip(group), expected)
        self.steps.step_unless(torch.tensor(forbidden, device=self.weights[0].device))
        if not forbidden:
            self.plain.step()

    def assert_equal(self) -> None:
        for weight, other in zip(self.weights, weights_of(self.plain), strict=True):
            close(weight, other)
            state, expected = self.optimizer.state[weight], self.plain.state[other]
            assert state.keys() == expected.keys()
            assert all(state[name].dtype == torch.float32 for name in state)
            for name in state:
                close(state[name], expected[name])
            if weight in self.rounded:
                assert torch.equal(self.rounded[weight], weight.to(torch.bfloat16))


def weights_of(optimizer: torch.optim.AdamW) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def close(found: Tensor, expected: Tensor) -> None:
    # torch's fused kernel takes 1 - beta^n in float32, which is 3e-6 of a step in error.
    torch.testing.assert_close(found, expected, rtol=5e-6, atol=3e-7 if found.is_cuda else 3e-8)


def pair(device: str, **settings: float) -> Pair:
    generator, place = torch.Generator().manual_seed(0), torch.device(device)
    values = [torch.randn(shape, generator=generator).to(place) for shape in (*HALVED, *OWN)]
    ours, plain = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    rounded = {weight: nn.Parameter(weight.detach().to(torch.bfloat16)) for weight in ours[: len(HALVED)]}
    optim: Any = SimpleNamespace(**vars(OPTIM) | settings)
    optimizer, other = (
        adamw({"actor": weights[::2], "critic": weights[1::2]}, optim, place) for weights in (ours, plain)
    )
    return Pair(optimizer, Steps(optimizer, rounded, OPTIM.clip_grad), rounded, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [1.0, 1e-4], ids=["clipped", "not clipped"])
def test_steps_are_those_of_torch(device: str, scale: float) -> None:
    both = pair(device)
    for step in range(5):
        for optimizer in (both.optimizer, both.plain):
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * (1 - 0.2 * step)
        both.set_gradients(step, scale)
        both.step(forbidden=step == 2)
        both.assert_equal()
    assert all(float(both.optimizer.state[weight]["step"]) == 4 for weight in both.weights)


@pytest.mark.parametrize("settings", [{"adam_beta1": 0.0}, {"adam_beta2": 0.0}, {"weight_decay": 0.0}])
def test_settings_may_be_zero(settings: dict[str, float]) -> None:
    both = pair("cpu", **settings)
    for step in range(2):
        both.set_gradients(step, 1.0)
        both.step()
        both.assert_equal()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", [1.0, float("nan")])
def test_a_forbidden_step_leaves_everything_alone(device: str, number: float) -> None:
    both = pair(device)
    both.set_gradients(0, 1.0)
    both.step()
    kept = [weight.detach().clone() for weight in (*both.weights, *both.rounded.values())]
    state = copy.deepcopy(both.optimizer.state_dict()["state"])
    both.set_gradients(1, number)
    for group in range(2):
        both.steps.clip(group)
    both.steps.step_unless(torch.tensor(True, device=device))
    for weight, before in zip((*both.weights, *both.rounded.values()), kept, strict=True):
        assert torch.equal(weight, before)
    for index, found in both.optimizer.state_dict()["state"].items():
        assert all(torch.equal(found[name], state[index][name]) for name in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_does_not_wait_for_a_step() -> None:
    both = pair("cuda")
    for step in range(2):
        both.set_gradients(step, 1.0)
        forbidden = torch.tensor(False, device="cuda")
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            for group in range(2):
                both.steps.clip(group)
            both.steps.step_unless(forbidden)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
def test_a_group_without_gradients_is_left_alone_and_begins_later(device: str) -> None:
    both = pair(device)
    both.set_gradients(0, 1.0)
    both.steps.drop(0)
    for weight in both.plain.param_groups[0]["params"]:
        weight.grad = None
    before = [weight.detach().clone() for weight in both.weights]
    both.step()
    for weight, kept in zip(both.weights, before, strict=True):
        assert torch.equal(weight, kept) == (weight not in set(both.optimizer.param_groups[1]["params"]))
    both.set_gradients(1, 1.0)
    both.step()
    both.assert_equal()


@pytest.mark.parametrize("device", DEVICES)
def test_gathered_gradients_add_up_in_float32(device: str) -> None:
    both = pair(device)
    both.set_gradients(0, 1.0)
    first = [weight.grad for weight in weights_of(both.plain)]
    both.steps.gather()
    both.set_gradients(1, 1e-3)
    both.steps.gather()
    for weight, other, start in zip(both.weights, weights_of(both.plain), first, strict=True):
        assert other.grad is not None
        assert start is not None
        if weight in both.rounded:
            other.grad += start
            assert weight.grad is not None
            assert torch.equal(weight.grad, other.grad), "1e-3 of a bfloat16 number would be lost"
    both.step()
    both.assert_equal()


def test_moments_continue_in_another_optimizer() -> None:
    both, later = pair("cpu"), pair("cpu")
    both.set_gradients(0, 1.0)
    both.step()
    with torch.no_grad():
        for weight, other, value in zip(later.weights, weights_of(later.plain), both.weights, strict=True):
            weight.copy_(value)
            other.copy_(value)
    for optimizer in (later.optimizer, later.plain):
        optimizer.load_state_dict(copy.deepcopy(both.optimizer.state_dict()))
    later.set_gradients(1, 1.0)
    later.step()
    later.assert_equal()
