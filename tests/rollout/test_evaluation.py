"""Evaluation on the real simulator: the same episodes, whatever runs beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.registry import create_env
from regrasp.errors import TrainingHaltedError
from regrasp.experiment.load import load_config
from regrasp.models.contract import Policy
from regrasp.rollout.choosers import expert_chooser, policy_chooser, random_chooser, zero_chooser
from regrasp.rollout.episodes import Choose, EpisodeResult, NoiseKey
from regrasp.rollout.evaluation import RecordedEpisode, VideoRecorder, evaluate
from regrasp.rollout.inference import Inference
from regrasp.seeding import episode_seed
from rl_toys import LIMIT, Script, ScriptedEnv, groot_policy, mlp_policy, observation

CPU = torch.device("cpu")
SEED, STREAM = 3, 9
NUM_EPISODES = 10
NUM_RECORDED = 3


@pytest.fixture
def threads() -> object:
    """Restores torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("num_threads", [1, 2, pytest.param(5, marks=pytest.mark.full)])
@pytest.mark.parametrize("block", [7, 32])
@pytest.mark.parametrize("make", [mlp_policy, lambda: groot_policy(image_size=84)], ids=["mlp", "groot"])
def test_an_action_does_not_depend_on_its_place_in_the_block(
    make: Callable[[], Policy], block: int, num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    worker = Inference(make(), SEED, "eval", device=CPU, keep_features=True)
    seen, keys = observation(40, size=84), [(row, 0, 2) for row in range(40)]
    expected = worker.act_in_blocks(seen, keys, block)
    for seed in range(2):
        rows = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[: 40 - 7 * seed]
        actions = worker.act_in_blocks(seen.rows(rows), [keys[row] for row in rows.tolist()], block)
        assert torch.equal(actions, expected[rows])
    assert torch.get_num_threads() == num_threads


def test_blocks_do_not_change_the_actions_by_more_than_rounding() -> None:
    policy = groot_policy()
    worker = Inference(policy, SEED, "eval", device=CPU, keep_features=True)
    seen, keys = observation(5), [(row, 0, 2) for row in range(5)]
    direct = worker.decide(seen, keys, deterministic=True).action.actions
    torch.testing.assert_close(worker.act_in_blocks(seen, keys, 32), direct, rtol=1e-5, atol=1e-6)


@dataclass
class Outcome:
    """One evaluation."""

    results: list[EpisodeResult]
    actions: dict[NoiseKey, Tensor]
    recordings: dict[int, RecordedEpisode] = field(default_factory=dict)
    order: list[EpisodeResult] = field(default_factory=list)


def pick_env(num_envs: int, num_workers: int) -> VecEnv:
    config = load_config(
        "pick_cube_ppo_groot", [f"env.eval.total_num_envs={num_envs}", f"env.eval.num_workers={num_workers}"]
    ).config
    return create_env(config.env.eval, "eval", max_chunk=4)


def evaluated(
    choose_in: Callable[[VecEnv], Choose], num_envs: int, num_workers: int, num_recorded: int = NUM_RECORDED
) -> Outcome:
    env = pick_env(num_envs, num_workers)
    try:
        choose = choose_in(env)
        outcome = Outcome([], {})

        def remember(seen: Observation, rows: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
            actions = choose(seen, rows, keys)
            outcome.actions |= dict(zip(keys, actions.clone(), strict=True))
            return actions

        def keep(recorded: RecordedEpisode) -> None:
            assert recorded.index not in outcome.recordings
            outcome.recordings[recorded.index] = recorded

        outcome.results = evaluate(
            env, remember, range(NUM_EPISODES), SEED, STREAM, outcome.order.append, VideoRecorder(num_recorded, keep)
        )
        return outcome
    finally:
        env.close()


def helped_policy(env: VecEnv) -> Choose:
    """A policy of random weights, helped by the expert so that episodes end at different times."""
    policy = groot_policy(image_size=84, state_dim=4, action_dim=4, num_action_chunks=1)
    worker = Inference(policy, SEED, "eval", device=CPU, keep_features=True)
    mapping = ActionMapping(MappingConfig(), 4, 4, "env.eval.mapping")
    by_policy, by_expert = policy_chooser(worker, mapping, 32), expert_chooser(env)
    return lambda seen, rows, keys: by_expert(seen, rows, keys) + 0.3 * by_policy(seen, rows, keys)


@pytest.fixture(scope="module")
def reference() -> Outcome:
    return evaluated(helped_policy, num_envs=8, num_workers=1)


def test_every_episode_is_run_once_with_its_own_seed(reference: Outcome) -> None:
    assert [r.seed for r in reference.results] == [episode_seed(SEED, "eval", STREAM, i) for i in range(NUM_EPISODES)]
    assert sorted(r.seed for r in reference.order) == sorted(r.seed for r in reference.results)
    assert len({r.length for r in reference.results}) > 2, "episodes that end at different times test more"
    assert any(r.success for r in reference.results)


@pytest.mark.parametrize(
    ("num_envs", "num_workers"), [(8, 2), *(pytest.param(*case, marks=pytest.mark.full) for case in ((3, 1), (16, 2)))]
)
def test_outcomes_do_not_depend_on_environments_and_workers(
    reference: Outcome, num_envs: int, num_workers: int
) -> None:
    other = evaluated(helped_policy, num_envs, num_workers)
    assert other.results == reference.results
    assert other.actions.keys() == reference.actions.keys()
    assert all(torch.equal(other.actions[key], action) for key, action in reference.actions.items())
    for index, recorded in reference.recordings.items():
        assert torch.equal(other.recordings[index].frames, recorded.frames)
        assert torch.equal(other.recordings[index].rewards, recorded.rewards)


def test_the_recorded_episodes_are_the_first_ones(reference: Outcome) -> None:
    assert sorted(reference.recordings) == list(range(NUM_RECORDED))
    for index, recorded in reference.recordings.items():
        result = reference.results[index]
        assert recorded.result == result
        assert recorded.frames.shape == (result.length, 256, 256, 3)
        assert recorded.frames.dtype == torch.uint8
        assert float(recorded.rewards.sum()) == result.total_reward
        differences = (recorded.frames[1:].float() - recorded.frames[:-1].float()).abs().amax((1, 2, 3))
        assert differences.count_nonzero() > 0.5 * (result.length - 1), "the robot moves"


def test_choosers_without_a_policy() -> None:
    limit = load_config("pick_cube_ppo_groot").config.env.eval.max_episode_steps
    outcomes = {
        name: evaluated(choose, num_envs=4, num_workers=1, num_recorded=0)
        for name, choose in {
            "expert": expert_chooser,
            "zero": zero_chooser,
            "random": lambda env: random_chooser(env, SEED),
        }.items()
    }
    assert all(result.success for result in outcomes["expert"].results)
    assert not any(result.success for result in outcomes["zero"].results)
    assert all(result.length == limit for result in outcomes["zero"].results)
    drawn = torch.stack(list(outcomes["random"].actions.values()))
    assert drawn.abs().max() <= 1
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(3**-0.5, abs=0.03)


def test_a_number_that_is_not_finite_stops_an_evaluation() -> None:
    class Broken(ScriptedEnv):
        def observe(self) -> Observation:
            seen = super().observe()
            seen.state["state"][2, 0] = float("nan")
            return seen

    env = Broken([[Script(LIMIT)]] * 3)
    with pytest.raises(TrainingHaltedError, match="Environment 2 returned a state"):
        evaluate(env, lambda _o, rows, _k: torch.zeros(len(rows), 1, 3), range(3), SEED, STREAM)
