"""Several vector environments behave as one."""

from __future__ import annotations

import pytest
import torch
from rank_toys import SIZE, PointEnv

from regrasp.envs.contract import Step
from regrasp.envs.joined import JoinedVecEnv

COUNTS = (2, 1, 3)
TOTAL = sum(COUNTS)


def tensors(step: Step) -> list[torch.Tensor]:
    return [*step.observation.state.values(), step.rewards, step.num_executed, step.terminated, step.truncated]


@pytest.fixture
def joined() -> JoinedVecEnv:
    return JoinedVecEnv([PointEnv(count) for count in COUNTS])


def test_episodes_are_those_of_one_environment(joined: JoinedVecEnv) -> None:
    one, generator = PointEnv(TOTAL), torch.Generator().manual_seed(1)
    for env in (one, joined):
        env.reset(range(TOTAL), range(TOTAL))
    for number in range(8):
        actions = torch.randn(TOTAL, SIZE, SIZE, generator=generator)
        expected, found = one.step(actions), joined.step(actions)
        for own, other in zip(tensors(expected), tensors(found), strict=True):
            assert torch.equal(own, other)
        ended = torch.nonzero(expected.done).flatten().tolist()
        seeds = [100 + number] * len(ended)
        assert torch.equal(one.reset(ended, seeds).state["state"], joined.reset(ended, seeds).state["state"])


def test_a_part_without_new_episodes_is_not_asked() -> None:
    parts = [PointEnv(count) for count in COUNTS]
    joined = JoinedVecEnv(parts)
    before = joined.reset(range(TOTAL), range(TOTAL)).state["state"]
    parts[0].reset = None  # pyright: ignore[reportAttributeAccessIssue]
    observation = joined.reset([3], [7])
    assert torch.equal(observation.state["state"][:3], before[:3])
    assert observation.instruction == ["go"] * TOTAL


def test_its_state_is_that_of_one_environment(joined: JoinedVecEnv) -> None:
    joined.reset(range(TOTAL), range(TOTAL))
    joined.step(torch.ones(TOTAL, SIZE, SIZE))
    one = PointEnv(TOTAL)
    one.load_state_dict(joined.state_dict())
    again = JoinedVecEnv([PointEnv(count) for count in COUNTS])
    again.load_state_dict(one.state_dict())
    actions = torch.full((TOTAL, SIZE, SIZE), 0.5)
    assert torch.equal(one.step(actions).rewards, again.step(actions).rewards)
