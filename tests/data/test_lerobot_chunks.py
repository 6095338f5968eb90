"""Action chunks against values worked out by hand and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from regrasp.data.lerobot import action_chunks


def test_chunks_by_hand() -> None:
    actions = np.array([[10.0], [11.0], [12.0], [20.0]])
    chunks, valid = action_chunks(actions, np.array([0, 0, 0, 1]), horizon=3)
    assert chunks[..., 0].tolist() == [[10, 11, 12], [11, 12, 12], [12, 12, 12], [20, 20, 20]]
    assert valid.tolist() == [[True, True, True], [True, True, False], [True, False, False], [True, False, False]]


def test_chunks_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    lengths, horizon = [5, 1, 9, 2], 4
    episode = np.repeat([7, 3, 8, 0], lengths)
    actions = rng.normal(size=(len(episode), 2)).astype(np.float32)
    chunks, valid = action_chunks(actions, episode, horizon)
    assert chunks.shape == (17, 4, 2)
    assert chunks.dtype == np.float32
    for i in range(len(episode)):
        for h in range(horizon):
            inside = i + h < len(episode) and episode[i + h] == episode[i]
            last = max(j for j in range(len(episode)) if episode[j] == episode[i])
            assert valid[i, h] == inside
            np.testing.assert_array_equal(chunks[i, h], actions[i + h if inside else last])


@pytest.mark.parametrize(
    ("actions", "episode", "horizon"),
    [
        (np.zeros((3, 1)), np.array([0, 1, 0]), 2),
        (np.zeros((3, 1)), np.array([0, 0]), 2),
        (np.zeros(3), np.array([0, 0, 0]), 2),
        (np.zeros((3, 1)), np.array([0, 0, 0]), 0),
        (np.zeros((0, 1)), np.zeros(0, dtype=int), 2),
    ],
)
def test_impossible_chunks_are_refused(actions: np.ndarray, episode: np.ndarray, horizon: int) -> None:
    with pytest.raises(ValueError, match=r"expected|adjacent|at least"):
        action_chunks(actions, episode, horizon)
