from __future__ import annotations

import torch

from regrasp.algorithms.reduce import broadcast_like, masked_mean, reduce_log_probs
from regrasp.config.types import Level

LOG_PROBS = torch.arange(1.0, 13.0).reshape(2, 3, 2)
NUM_EXECUTED = torch.tensor([2, 0])


def test_levels_sum_the_executed_steps_only():
    token, token_mask = reduce_log_probs(LOG_PROBS, NUM_EXECUTED, "token_level")
    assert token.tolist() == [[[1, 2], [3, 4], [0, 0]], [[0, 0], [0, 0], [0, 0]]]
    assert token_mask.shape == (2, 3, 2)
    assert token_mask.sum() == 4
    action, action_mask = reduce_log_probs(LOG_PROBS, NUM_EXECUTED, "action_level")
    assert action.tolist() == [[3, 7, 0], [0, 0, 0]]
    assert action_mask.tolist() == [[True, True, False], [False] * 3]
    chunk, chunk_mask = reduce_log_probs(LOG_PROBS, NUM_EXECUTED, "chunk_level")
    assert chunk.tolist() == [10, 0]
    assert chunk_mask.tolist() == [True, False]


def test_steps_that_were_not_executed_get_no_gradient():
    levels: tuple[Level, ...] = ("token_level", "action_level", "chunk_level")
    for level in levels:
        log_probs = LOG_PROBS.clone()
        log_probs[0, 2] = float("nan")
        log_probs.requires_grad_()
        total, _ = reduce_log_probs(log_probs, NUM_EXECUTED, level)
        total.sum().backward()
        assert log_probs.grad is not None
        assert log_probs.grad.tolist() == [[[1, 1], [1, 1], [0, 0]], [[0, 0]] * 3]


def test_broadcast_like_repeats_over_trailing_dimensions():
    x = torch.tensor([1.0, 2.0])
    assert broadcast_like(x, torch.zeros(2)).tolist() == [1, 2]
    assert broadcast_like(x, torch.zeros(2, 3)).tolist() == [[1, 1, 1], [2, 2, 2]]
    assert broadcast_like(x, torch.zeros(2, 2, 1)).tolist() == [[[1], [1]], [[2], [2]]]


def test_masked_mean_ignores_the_rest_and_is_zero_when_empty():
    x = torch.tensor([1.0, float("nan"), 5.0])
    assert masked_mean(x, torch.tensor([True, False, True])) == 3
    assert masked_mean(x, torch.tensor([False] * 3)) == 0


def test_masked_mean_keeps_dimensions_before_those_of_the_mask():
    x = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, False], [True, False], [False, False]])
    assert masked_mean(x, mask).tolist() == [(0 + 2) / 2, (6 + 8) / 2]
