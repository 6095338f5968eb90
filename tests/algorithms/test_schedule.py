from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from regrasp.algorithms import schedule


def library_factors(num_steps: int, kind: str, min_ratio: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler: LRScheduler
    if kind == "linear":
        scheduler = LinearLR(optimizer, start_factor=1.0, end_factor=min_ratio, total_iters=num_steps)
    else:
        scheduler = CosineAnnealingLR(optimizer, T_max=num_steps, eta_min=min_ratio)
    factors = []
    for _ in range(num_steps + 1):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


def test_linear_and_cosine_agree_with_torch():
    linear = [schedule.linear(step, num_steps=20, min_ratio=0.1) for step in range(21)]
    cosine = [schedule.cosine(step, num_steps=20, min_ratio=0.1) for step in range(21)]
    assert linear == pytest.approx(library_factors(20, "linear", 0.1))
    assert cosine == pytest.approx(library_factors(20, "cosine", 0.1))


@pytest.mark.parametrize("factor", [schedule.linear, schedule.cosine])
def test_warm_up_rises_to_one_then_decays_to_the_minimum(factor):
    factors = [factor(step, num_steps=10, num_warmup_steps=4, min_ratio=0.2) for step in range(15)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:11] == sorted(factors[4:11], reverse=True)
    assert factors[7] == pytest.approx(0.6)
    assert factors[10:] == pytest.approx([0.2] * 5)


def test_constant_is_one_after_warm_up():
    assert [schedule.constant(step) for step in (0, 7)] == [1.0, 1.0]
    assert schedule.constant(0, num_warmup_steps=3) == 0.25
    assert schedule.constant(100, num_warmup_steps=3) == 1.0
