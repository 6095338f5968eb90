"""Demonstrations as decisions: a chunk from every frame, chained as an episode is, with what it earned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from run_toys import groot_experiment

from regrasp.algorithms.replay import Replay
from regrasp.data.lerobot import DemonstrationDataset
from regrasp.errors import UserError
from regrasp.models.groot.checkpoint import load_groot
from regrasp.stages.replayed_demonstrations import find_demonstrations, replayed_demonstrations

SETTINGS = (
    "actor.model.add_value_head=false",
    "actor.model.add_q_head=true",
    "algorithm.adv_type=embodied_sac",
    "algorithm.loss_type=embodied_sac",
)
GAMMA, CHUNK = 0.9, 4


def test_every_frame_begins_a_decision_and_returns_are_those_of_the_episode(base_model: Path, demos: Path) -> None:
    config = groot_experiment(*SETTINGS, f"actor.model.model_path={base_model}").config
    policy = load_groot(base_model, config.actor.model).eval()  # pyright: ignore[reportArgumentType]
    found = replayed_demonstrations(config, find_demonstrations(config, demos), policy)
    dataset = DemonstrationDataset(demos)
    columns = dataset.load_columns(["action", "next.success"])
    actions, success = columns["action"], columns["next.success"].reshape(-1)
    assert len(found) == dataset.num_frames
    assert success.any()
    stored = Replay(len(found), int(found["column"].max()) + 1, gamma=GAMMA, reward_type="chunk_level")
    stored.add(found)
    assert len(stored) == len(found), "each of them is followed by another one, or ends"
    done = policy.processor.unnormalize_actions(found.trace["actions"].view(-1, CHUNK, 4))
    episode = {start: e for e in dataset.episodes for start in range(e.start, e.start + CHUNK)}
    for row in range(len(found)):
        chain, number = int(found["column"][row]), int(found["decision"][row])
        own, frame = episode[chain], chain + CHUNK * number
        count = min(CHUNK, own.stop - frame)
        assert int(found["num_executed"][row]) == count
        np.testing.assert_allclose(done[row, :count].numpy(), actions[frame : frame + count], atol=1e-5)
        assert bool(found["ends"][row]) == (frame + CHUNK >= own.stop)
        rest = success[frame : own.stop]
        expected = sum(GAMMA ** (step // CHUNK) * float(value) for step, value in enumerate(rest))
        assert float(stored.column("returns", torch.tensor([row]))) == pytest.approx(expected, rel=1e-5)


def test_demonstrations_that_do_not_say_what_they_earned_are_refused(base_model: Path, demos: Path) -> None:
    config = groot_experiment(*SETTINGS, f"actor.model.model_path={base_model}").config
    with pytest.raises(UserError, match="block that says"):
        find_demonstrations(dataclasses.replace(config, sft=None), demos)
