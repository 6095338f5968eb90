"""Stored decisions are linked to what followed them, whichever way episodes end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from regrasp.algorithms.replay import Replay, Room
from regrasp.errors import UserError
from regrasp.rollout.decisions import Decisions

GAMMA = 0.9


def decisions(*rows: tuple[int, int, int, float, str]) -> Decisions:
    """Decisions of (environment, time within the rollout, number within the episode, reward, kind).

    A kind is `` for one that goes on, `end`, `success`, `limit` for one that the step limit ends, `final` for the
    observation that it was cut on.
    """
    count = len(rows)
    env, time, number, reward, kinds = zip(*rows, strict=True)
    is_final = torch.tensor([kind == "final" for kind in kinds])
    record = TensorDict(
        {
            "column": torch.tensor(env),
            "time": torch.tensor(time),
            "decision": torch.tensor(number),
            "rewards": torch.tensor(reward)[:, None],
            "num_executed": (~is_final).long(),
            "ends": torch.tensor([kind != "" for kind in kinds]),
            "success": torch.tensor([kind == "success" for kind in kinds]),
            "is_final": is_final,
            "trace": TensorDict({"actions": torch.tensor(reward)[:, None, None]}, batch_size=[count]),
        },
        batch_size=[count],
    )
    inputs = {"state": torch.tensor(reward)[:, None], "context": torch.rand(count, 3, 2)}
    return Decisions(TensorDict(inputs, batch_size=[count]), record, are_encoded=True)


def replay(capacity: int = 16, num_envs: int = 2) -> Replay:
    return Replay(capacity, num_envs, gamma=GAMMA, reward_type="chunk_level")


def drawn(stored: Replay, steps: int = 1, size: int = 400) -> dict[float, tuple[float, float, float]]:
    """By the reward that names a decision: what is earned, the discount of what follows, and the name of that."""
    sample = stored.draw(size, torch.Generator().manual_seed(0), steps=steps)
    names = stored.inputs(sample.rows)["state"][:, 0].tolist()
    following = stored.inputs(sample.following)["state"][:, 0].tolist()
    found = zip(sample.rewards.tolist(), sample.discounts.tolist(), following, strict=True)
    return {round(name, 3): tuple(round(value, 3) for value in row) for name, row in zip(names, found, strict=True)}


def test_each_decision_is_followed_by_the_next_of_its_episode_over_rollouts() -> None:
    stored = replay()
    stored.add(decisions((0, 0, 0, 1.0, ""), (1, 0, 0, 2.0, ""), (0, 1, 1, 3.0, "end"), (1, 1, 1, 4.0, "")))
    assert drawn(stored) == {1.0: (1.0, 0.9, 3.0), 2.0: (2.0, 0.9, 4.0), 3.0: (3.0, 0.0, 3.0)}
    stored.add(decisions((0, 0, 0, 5.0, ""), (1, 0, 2, 6.0, "end")))
    assert drawn(stored)[4.0] == (4.0, 0.9, 6.0)
    assert 5.0 not in drawn(stored), "what follows it is not known yet"


def test_a_return_that_the_step_limit_cuts_goes_on_with_the_observation_stored_for_it() -> None:
    stored = replay()
    stored.add(decisions((0, 0, 0, 1.0, "limit"), (0, 0, 1, -1.0, "final"), (0, 1, 0, 2.0, "limit")))
    assert drawn(stored) == {1.0: (1.0, 0.9, -1.0), 2.0: (2.0, 0.0, 2.0)}, "the second has none: running out is failing"


def test_rewards_of_several_decisions_end_with_the_episode() -> None:
    stored = replay(num_envs=1)
    stored.add(decisions((0, 0, 0, 1.0, ""), (0, 1, 1, 2.0, ""), (0, 2, 2, 4.0, "limit"), (0, 2, 3, -1.0, "final")))
    assert drawn(stored, steps=2) == {1.0: (2.8, 0.81, 4.0), 2.0: (5.6, 0.81, -1.0), 4.0: (4.0, 0.9, -1.0)}
    assert drawn(stored, steps=9)[1.0] == (round(1 + 0.9 * 2 + 0.81 * 4, 3), 0.729, -1.0)


def test_an_episode_that_was_broken_off_is_not_linked_to_the_one_after_it() -> None:
    stored = replay()
    stored.add(decisions((0, 0, 0, 1.0, ""), (1, 0, 0, 2.0, "end")))
    stored.add(decisions((0, 0, 0, 3.0, "end"), (1, 0, 0, 4.0, "end")))
    assert set(drawn(stored)) == {2.0, 3.0, 4.0}


def test_old_decisions_are_overwritten_and_leave_no_link() -> None:
    stored = replay(capacity=4, num_envs=1)
    stored.add(decisions(*((0, number, number, float(number + 1), "") for number in range(4))))
    stored.add(decisions((0, 0, 4, 5.0, ""), (0, 1, 5, 6.0, "end")))
    assert drawn(stored) == {3.0: (3.0, 0.9, 4.0), 4.0: (4.0, 0.9, 5.0), 5.0: (5.0, 0.9, 6.0), 6.0: (6.0, 0.0, 6.0)}
    with pytest.raises(UserError, match="smaller than one update"):
        stored.add(decisions(*((0, number, number, 0.0, "") for number in range(5))))


def test_successes_and_returns_are_those_of_whole_episodes() -> None:
    stored = replay()
    stored.add(decisions((0, 0, 0, 0.0, ""), (1, 0, 0, 0.5, ""), (0, 1, 1, 1.0, "success"), (1, 1, 1, 0.25, "end")))
    assert len(stored) == 4
    assert stored.num_successful == 2
    sample = stored.draw(64, torch.Generator().manual_seed(0), successful=0.5)
    returns = stored.column("returns", sample.rows)
    assert torch.allclose(returns[32:].unique(), torch.tensor([GAMMA, 1.0]))
    assert torch.allclose(returns.unique(), torch.tensor([0.25, 0.725, 0.9, 1.0]))


def test_what_is_restored_goes_on_alike() -> None:
    first = decisions((0, 0, 0, 1.0, ""), (1, 0, 0, 2.0, ""), (0, 1, 1, 3.0, "end"))
    second = decisions((0, 0, 0, 5.0, ""), (1, 0, 1, 6.0, "end"))
    whole, resumed = replay(), replay()
    whole.add(first)
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    whole.add(second)
    resumed.add(second)
    assert drawn(whole) == drawn(resumed)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(UserError, match="another size"):
        replay(capacity=2).load_state_dict(whole.state_dict())


def in_files(folder: str | None, num_bytes: int) -> Replay:
    room = Room(num_bytes, folder)
    return Replay(16, 2, gamma=GAMMA, reward_type="chunk_level", room=room)


def test_what_is_beyond_its_memory_is_in_files_and_the_same(tmp_path: Path) -> None:
    steps = decisions((0, 0, 0, 1.0, ""), (1, 0, 0, 2.0, ""), (0, 1, 1, 3.0, "end"), (1, 1, 1, 4.0, "end"))
    plain, mapped = replay(), in_files(str(tmp_path), 16 * 2 * 4)  # room for all but the context, (16, 3, 2) in 16 bits
    for stored in (plain, mapped):
        stored.add(steps)
    rows = torch.arange(4)
    assert (plain.inputs(rows) == mapped.inputs(rows)).all()
    assert (plain.traces(rows) == mapped.traces(rows)).all()
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert sum("regrasp-replay-" in line and str(tmp_path) in line for line in maps) == 1
    assert list(tmp_path.iterdir()) == [], "the file is gone when the process is"
    again = in_files(str(tmp_path), 0)
    again.load_state_dict(mapped.state_dict())
    assert (plain.inputs(rows) == again.inputs(rows)).all()
    assert drawn(plain) == drawn(again)


def test_files_that_cannot_be_made_are_said_with_their_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be made") as refusal:
        in_files(str(tmp_path / "missing"), 0).add(decisions((0, 0, 0, 1.0, "end")))
    assert refusal.value.key == "algorithm.replay_buffer.storage_path"
