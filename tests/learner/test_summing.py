"""Gradients that are summed over ranks while a backward pass goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from regrasp.learner import summing
from regrasp.learner.summing import SumsInPass
from regrasp.ranks import Ranks
from rl_toys import SIZE, groot_policy, never, rollout_of, weights, worker


class Twins(Ranks):
    """Stands for two ranks that compute the same: a sum is twice what this one has, once it was waited for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def begin_add(self, tensors: Sequence[Tensor]) -> Callable[[], object]:
        self.sizes.append(sum(tensor.numel() for tensor in tensors))
        return lambda: [tensor.mul_(2) for tensor in tensors]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.parametrize("bucket_bytes", [1, 60, 10**6])
def test_every_gradient_is_the_sum_whatever_the_buckets(monkeypatch: pytest.MonkeyPatch, bucket_bytes: int) -> None:
    monkeypatch.setattr(summing, "BUCKET_BYTES", bucket_bytes)
    summed, plain, ranks = net(), net(), Twins()
    unused = nn.Parameter(torch.ones(2))
    sums = SumsInPass([*summed.parameters(), unused], ranks)
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        for one in (summed, plain):
            one.zero_grad(set_to_none=True)
        with sums.of_pass():
            summed(x).square().mean().backward()
        plain(x).square().mean().backward()
        for own, other in zip(summed.parameters(), plain.parameters(), strict=True):
            assert own.grad is not None
            assert other.grad is not None
            torch.testing.assert_close(own.grad, 2 * other.grad, rtol=0, atol=0)
    assert unused.grad is None
    total = sum(parameter.numel() for parameter in plain.parameters())
    assert sum(ranks.sizes) == 2 * total
    assert len(ranks.sizes) == {1: 12, 60: 4, 10**6: 2}[bucket_bytes]


def test_outside_of_a_pass_nothing_is_summed() -> None:
    one, ranks = net(), Twins()
    SumsInPass(one.parameters(), ranks)
    one(torch.ones(1, 3)).sum().backward()
    assert ranks.sizes == []
    assert all(parameter.grad is not None for parameter in one.parameters())


def test_a_pass_that_failed_leaves_nothing_to_the_next() -> None:
    one, other, ranks = net(), net(), Twins()
    sums = SumsInPass(one.parameters(), ranks)

    def broken() -> None:
        with sums.of_pass():
            one(torch.ones(1, 3)).sum().backward()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    one.zero_grad(set_to_none=True)
    with sums.of_pass():
        one(torch.ones(1, 3)).sum().backward()
    other(torch.ones(1, 3)).sum().backward()
    for own, expected in zip(one.parameters(), other.parameters(), strict=True):
        assert own.grad is not None
        assert expected.grad is not None
        assert torch.equal(own.grad, 2 * expected.grad)


@pytest.mark.parametrize(("batch", "micro", "in_pass"), [(SIZE, SIZE, True), (SIZE, 8, False)])
def test_a_learner_sums_in_the_pass_where_a_minibatch_is_one(batch: int, micro: int, in_pass: bool) -> None:
    class Alone(Twins):
        """One rank that is told to be one of two, and finds no other."""

        count = 2

        def begin_add(self, tensors: Sequence[Tensor]) -> Callable[[], object]:
            self.sizes.append(sum(tensor.numel() for tensor in tensors))
            return lambda: None

    ranks = Alone()
    policy, plain = groot_policy(), groot_policy()
    rollout = rollout_of(policy, SIZE)
    made, expected = worker(policy, batch=batch, micro=micro, ranks=ranks), worker(plain, batch=batch, micro=micro)
    made.update(rollout, 0, never)
    expected.update(rollout, 0, never)
    assert bool(ranks.sizes) is in_pass
    torch.testing.assert_close(weights(policy), weights(plain), rtol=0, atol=0)
