"""Training episodes: what is executed, credited, keyed, begun anew and saved."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.ppo import PpoConfig
from regrasp.envs.contract import Capabilities, Step, VecEnv
from regrasp.envs.registry import create_env
from regrasp.errors import TrainingHaltedError, UserError
from regrasp.experiment.load import load_config
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.episodes import EpisodeResult, NoiseKey
from regrasp.rollout.inference import Inference
from regrasp.rollout.training import TrainingEpisodes, collect_rollout
from regrasp.seeding import KeyedNoise, episode_seed
from rl_toys import CHUNK, LIMIT, EchoPolicy, Script, ScriptedEnv, plain_mapping, value_of

SEED, STREAM = 11, 4


def three_envs(**settings: object) -> ScriptedEnv:
    """Ends inside the first chunk, truncations, and ends at a chunk's edge."""
    scripts = [
        [Script(2, success=True), Script(LIMIT), Script(4)],
        [Script(LIMIT)],
        [Script(6), Script(3, success=True), Script(1)],
    ]
    return ScriptedEnv(scripts, **settings)  # pyright: ignore[reportArgumentType]


class Session:
    """Training episodes and a policy on a scripted environment."""

    def __init__(
        self, env: ScriptedEnv, *, auto_reset: bool = True, scale: float = 1.0, bootstrap_truncated: bool = True
    ) -> None:
        self.env = env
        self.bootstrap_truncated = bootstrap_truncated
        self.mapping = plain_mapping(scale)
        self.episodes = TrainingEpisodes(env, SEED, stream=STREAM, auto_reset=auto_reset)
        self.policy = EchoPolicy()
        self.inference = Inference(self.policy, SEED, "train", device=torch.device("cpu"), keep_features=True)

    def epoch(self, buffer: RolloutBuffer, num_decisions: int, first_column: int = 0) -> list[EpisodeResult]:
        return collect_rollout(
            [self.episodes],
            self.inference,
            self.mapping,
            buffer,
            num_decisions=num_decisions,
            first_column=first_column,
            bootstrap="truncated" if self.bootstrap_truncated else "cut",
            should_stop=lambda: False,
        )

    def run(self, num_decisions: int) -> tuple[Decisions, list[EpisodeResult]]:
        buffer = RolloutBuffer()
        episodes = self.epoch(buffer, num_decisions)
        return one_step_rollout(buffer), episodes


def one_step_rollout(buffer: RolloutBuffer) -> Decisions:
    """With gamma 1 and lambda 0, returns - rewards is the value of the next observation."""
    return PpoConfig(gamma=1.0, gae_lambda=0.0, normalize_advantages=False).build().prepare(buffer.build())


def states_of(rollout: Decisions) -> list[tuple[int, int, int]]:
    assert isinstance(rollout.inputs, TensorDict)
    return [(int(a), int(b), int(c)) for a, b, c in rollout.inputs["state"].tolist()]


def test_every_action_is_executed_in_the_episode_that_it_was_planned_for() -> None:
    session = Session(three_envs())
    rollout, _ = session.run(8)
    assert len(session.env.executed) == int(rollout["num_executed"].sum())
    for row, episode, step, action in session.env.executed:
        seen_row, seen_episode, seen_step = action
        assert (row, episode) == (seen_row, seen_episode)
        assert seen_step == CHUNK * (step // CHUNK)  # the decision before this step, at its place in the chunk


def test_rewards_and_counts_are_credited_to_the_decision_that_earned_them() -> None:
    session = Session(three_envs())
    rollout, _ = session.run(8)
    for (row, episode, step), executed, total in zip(
        states_of(rollout),
        rollout["num_executed"].tolist(),
        (rollout["returns"] - next_values(rollout)).tolist(),
        strict=True,
    ):
        script = session.env.scripts[row][min(episode, len(session.env.scripts[row]) - 1)]
        assert executed == min(CHUNK, min(script.length, LIMIT) - step)
        earned = sum(s + 10 * episode + 100 * row for s in range(step + 1, step + executed + 1))
        assert total == pytest.approx(earned, abs=1e-3)


def next_values(rollout: Decisions) -> Tensor:
    """What should follow each decision of `three_envs` in a rollout of 8 decisions."""
    env = three_envs()
    values = []
    for (row, episode, step), executed in zip(states_of(rollout), rollout["num_executed"].tolist(), strict=True):
        script = env.scripts[row][min(episode, len(env.scripts[row]) - 1)]
        terminated = script.length < LIMIT and step + executed == script.length
        values.append(0.0 if terminated else float(value_of(torch.tensor([row, episode, step + executed]).float())))
    return torch.tensor(values)


def test_truncations_and_cuts_take_the_value_of_the_true_final_observation() -> None:
    session = Session(three_envs())
    rollout, _ = session.run(8)
    env, following = session.env, next_values(rollout)
    endings = set()
    for state, executed, value in zip(
        states_of(rollout), rollout["num_executed"].tolist(), following.tolist(), strict=True
    ):
        row, episode, step = state
        script = env.scripts[row][min(episode, len(env.scripts[row]) - 1)]
        last = step + executed == min(script.length, LIMIT)
        endings.add(("terminated" if script.length < LIMIT else "truncated") if last else "goes on")
        assert (value == 0) == (last and script.length < LIMIT)
    assert endings == {"terminated", "truncated", "goes on"}


@pytest.mark.parametrize(("sees_final", "configured"), [(False, True), (True, False)])
def test_truncations_are_not_bootstrapped_when_they_cannot_or_shall_not_be(sees_final: bool, configured: bool) -> None:
    env = ScriptedEnv([[Script(LIMIT)]], capabilities=Capabilities(true_final_observation=sees_final))
    session = Session(env, auto_reset=False, bootstrap_truncated=configured)
    truncated, _ = session.run(3)
    assert states_of(truncated)[-1] == (0, 0, 6)
    assert float(truncated["returns"][-1]) == 7.0  # the reward of the last step alone
    cut, _ = session.run(2)
    assert float(cut["returns"][-1]) == pytest.approx(14 + 15 + 16 + 1 * 0.1 + 6 * 0.01)


def test_keys_name_environment_episode_and_decision() -> None:
    session = Session(three_envs())
    session.run(8)
    keys = [key for call in session.policy.keys for key in call]
    assert len(set(keys)) == len(keys), "no noise is used twice"
    for (row, episode, decision), (state_row, state_episode, step) in zip(
        keys, states_of(Session(three_envs()).run(8)[0]), strict=True
    ):
        assert (row, episode, decision) == (state_row, state_episode, step // CHUNK)


def test_with_auto_reset_a_new_episode_begins_at_once() -> None:
    session = Session(three_envs(), auto_reset=True)
    rollout, episodes = session.run(8)
    assert len(rollout) == 3 * 8
    assert session.episodes.running.all()
    assert len(episodes) > 3


def test_with_auto_reset_an_episode_goes_on_over_rollouts() -> None:
    session = Session(ScriptedEnv([[Script(LIMIT)]]))
    first, _ = session.run(2)
    second, episodes = session.run(1)
    assert states_of(first)[-1] == (0, 0, 3)
    assert states_of(second) == [(0, 0, 6)]
    assert [episode.length for episode in episodes] == [LIMIT]


def test_without_auto_reset_an_environment_rests_until_the_next_epoch() -> None:
    session = Session(three_envs(), auto_reset=False)
    buffer = RolloutBuffer()
    episodes = session.epoch(buffer, 3) + session.epoch(buffer, 3, first_column=3)
    rollout = one_step_rollout(buffer)
    assert len(episodes) == 6
    per_episode = {(row, episode) for row, episode, _ in states_of(rollout)}
    assert per_episode == {(row, episode) for row in range(3) for episode in range(2)}
    assert len(rollout) == sum(-(-episode.length // CHUNK) for episode in episodes)


def test_an_epoch_ends_early_when_every_episode_has() -> None:
    env = ScriptedEnv([[Script(2)], [Script(4)]])
    Session(env, auto_reset=False).run(10)
    assert env.num_calls == 2


def test_results_of_episodes() -> None:
    session = Session(three_envs(), auto_reset=False)
    _, episodes = session.run(3)
    by_seed = {episode.seed: episode for episode in episodes}
    for row, (length, success) in enumerate([(2, True), (LIMIT, False), (6, False)]):
        _, seed = session.env.resets[row]
        assert by_seed[seed] == EpisodeResult(
            seed=episode_seed(SEED, "train", STREAM, row, 0),
            instruction="do it",
            success=success,
            total_reward=sum(s + 100 * row for s in range(1, length + 1)),
            length=length,
            info={"stage": float(length)},
        )


def test_actions_reach_the_simulator_through_the_mapping() -> None:
    session = Session(ScriptedEnv([[Script(LIMIT)], [Script(LIMIT)]]), scale=0.5)
    session.run(2)
    for row, episode, step, action in session.env.executed:
        assert action == [0.5 * row, 0.5 * episode, 0.5 * CHUNK * (step // CHUNK)]


def test_a_request_to_stop_is_heard_before_the_next_decision() -> None:
    session = Session(three_envs())
    asked = iter([False, False, True])
    with pytest.raises(InterruptedError):
        collect_rollout(
            [session.episodes],
            session.inference,
            session.mapping,
            RolloutBuffer(),
            num_decisions=8,
            first_column=0,
            bootstrap="truncated",
            should_stop=lambda: next(asked),
        )
    assert session.env.num_calls == 2


def test_saved_episodes_continue_as_if_nothing_had_happened() -> None:
    straight = Session(three_envs())
    straight.run(3)
    state = straight.episodes.state_dict()
    expected, expected_episodes = straight.run(5)
    resumed = Session(three_envs())
    resumed.episodes.load_state_dict(state)
    rollout, episodes = resumed.run(5)
    assert states_of(rollout) == states_of(expected)
    assert torch.equal(rollout["returns"], expected["returns"])
    assert episodes == expected_episodes
    assert resumed.policy.keys == straight.policy.keys[3:]


def test_a_saved_state_is_a_copy() -> None:
    session = Session(three_envs())
    session.run(1)
    state = session.episodes.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    session.run(4)
    assert all(torch.equal(state[name], value) for name, value in before.items())


@pytest.mark.parametrize("auto_reset", [False, True])
def test_without_a_saved_simulator_running_episodes_are_begun_anew(auto_reset: bool) -> None:
    capabilities = Capabilities(saves_state=not auto_reset)
    session = Session(ScriptedEnv([[Script(LIMIT)]], capabilities=capabilities), auto_reset=auto_reset)
    session.run(2)
    resumed = Session(ScriptedEnv([[Script(LIMIT)]], capabilities=capabilities), auto_reset=auto_reset)
    resumed.episodes.load_state_dict(session.episodes.state_dict())
    resumed.run(1)
    assert resumed.env.resets == [(0, episode_seed(SEED, "train", STREAM, 0, 1))]


def test_seeds_of_training_and_evaluation_are_disjoint() -> None:
    train = {
        episode_seed(s, "train", t, row, e) for s in (0, 1) for t in (0, 1) for row in range(20) for e in range(20)
    }
    evaluation = {episode_seed(s, "eval", t, index) for s in (0, 1) for t in (0, 1) for index in range(500)}
    assert len(train) == 2 * 2 * 20 * 20
    assert len(evaluation) == 2 * 2 * 500
    assert all(seed % 2 == 0 for seed in train)
    assert all(seed % 2 == 1 for seed in evaluation)


class BrokenEnv(ScriptedEnv):
    """Gives a not-a-number at a chosen place, from the second step on or at a reset."""

    def __init__(self, place: str) -> None:
        super().__init__([[Script(LIMIT)], [Script(LIMIT)]])
        self.place = place

    def step(self, actions: Tensor) -> Step:
        step = super().step(actions)
        if self.num_calls == 2:
            if self.place == "reward":
                step.rewards[1, 0] = float("inf")
            elif self.place == "state":
                step.observation.state["state"][1, 2] = float("nan")
        return step

    def observe(self):
        observation = super().observe()
        if self.place == "reset":
            observation.state["state"][1, 0] = float("nan")
        return observation


@pytest.mark.parametrize(("place", "what"), [("reward", "reward"), ("state", "state"), ("reset", "state")])
def test_a_number_that_is_not_finite_stops_the_run(place: str, what: str) -> None:
    with pytest.raises(TrainingHaltedError, match=rf"Environment 1 returned a {what}.*before anything was learned"):
        Session(BrokenEnv(place)).run(4)


@pytest.fixture(scope="module")
def pick_env() -> Iterator[VecEnv]:
    """Four environments whose first states depend on the seed."""
    settings = ["env.train.total_num_envs=4", "env.train.num_workers=1", "actor.global_batch_size=4"]
    config = load_config("pick_cube_ppo_mlp", [*settings, "actor.micro_batch_size=4"]).config
    env = create_env(config.env.train, "train", max_chunk=1)
    yield env
    env.close()


def begun(env: VecEnv, group_size: int) -> tuple[list[list[float]], list[str], list[NoiseKey]]:
    """First states, instructions and noise keys."""
    episodes = TrainingEpisodes(env, SEED, stream=STREAM, auto_reset=False, group_size=group_size)
    episodes.begin()
    observation = episodes.observed()
    return observation.state["state"].tolist(), observation.instruction, episodes.keys()


def test_environments_of_a_group_begin_alike_and_draw_other_noise(pick_env: VecEnv) -> None:
    states, instructions, keys = begun(pick_env, group_size=2)
    assert states[0] == states[1]
    assert states[2] == states[3]
    assert states[0] != states[2]
    assert instructions[0] == instructions[1]
    assert instructions[2] == instructions[3]
    noise = KeyedNoise(SEED, "train", keys).normal("any", 5)
    assert len({tuple(row) for row in noise.tolist()}) == 4
    alone, _, own_keys = begun(pick_env, group_size=1)
    assert len({tuple(row) for row in alone}) == 4
    assert own_keys == keys


def test_groups_share_every_episodes_seed() -> None:
    env = ScriptedEnv([[Script(2)], [Script(4)], [Script(LIMIT)], [Script(3)]])
    episodes = TrainingEpisodes(env, SEED, stream=STREAM, auto_reset=True, group_size=2)
    for _ in range(2):
        episodes.begin()
        while episodes.running.any():
            episodes.step(torch.zeros(int(episodes.running.sum()), CHUNK, 3))
    expected = [(row, episode_seed(SEED, "train", STREAM, row // 2, e)) for e in range(2) for row in range(4)]
    assert env.resets == expected


def test_environments_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(UserError, match=r"env\.train\.total_num_envs \(3\)") as caught:
        TrainingEpisodes(three_envs(), SEED, stream=STREAM, auto_reset=True, group_size=2)
    assert caught.value.key == "algorithm.group_size"


def test_a_simulator_that_cannot_seed_single_environments_plays_no_groups():
    env = ScriptedEnv([[Script(LIMIT)]] * 2, capabilities=Capabilities(seed_per_env=False))
    with pytest.raises(UserError, match="cannot begin single environments alike"):
        TrainingEpisodes(env, 0, stream=0, auto_reset=False, group_size=2)
    TrainingEpisodes(env, 0, stream=0, auto_reset=False)
