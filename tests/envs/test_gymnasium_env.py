"""Gymnasium environments in their processes: whose observation is whose, in every autoreset mode."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gym_envs import FOREIGN, Count
from torch import Tensor

from regrasp.envs.contract import Observation, Step
from regrasp.envs.gymnasium.config import GymnasiumInitParams, GymnasiumMapping, GymnasiumTrainConfig
from regrasp.envs.gymnasium.env import Gymnasium
from regrasp.envs.mapping_config import StateEntry
from regrasp.envs.process.vector import RemoteVecEnv
from regrasp.errors import UserError
from regrasp.rollout.episodes import EpisodeResult, Episodes, NumberedEpisodes, Recorder, play_episodes
from regrasp.rollout.training import TrainingEpisodes

pytest.importorskip("gymnasium")
LIMIT = 50
SINGLE, VECTOR = "gym_envs:Count-v0", "gym_envs:CountVector-v0"
MODES = ("NextStep", "SameStep", "Disabled")
WAYS = [(SINGLE, None), *((VECTOR, mode) for mode in MODES)]
QUICK = [*WAYS[:2], *(pytest.param(*each, marks=pytest.mark.full) for each in WAYS[2:])]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def config(
    task: str = SINGLE,
    num_envs: int = 3,
    *,
    limit: int = LIMIT,
    mapping: dict[str, Any] | None = None,
    python: str | None = None,
    **init: Any,
) -> GymnasiumTrainConfig:
    states = ("seed", "clock", "action")
    return GymnasiumTrainConfig(
        env_type="gymnasium",
        total_num_envs=num_envs,
        max_episode_steps=limit,
        max_steps_per_rollout_epoch=limit,
        num_workers=1,
        python=python,
        init_params=GymnasiumInitParams(id=task, **init),
        mapping=GymnasiumMapping(**{"states": tuple(map(StateEntry, states)), **(mapping or {})}),
    )


@contextlib.contextmanager
def started(*args: Any, max_chunk: int = 3, **settings: Any) -> Iterator[RemoteVecEnv]:
    with contextlib.closing(Gymnasium().create_env(config(*args, **settings), "train", max_chunk, 0)) as env:
        assert isinstance(env, RemoteVecEnv)
        yield env


def way(task: str, mode: str | None) -> dict[str, Any]:
    return {"task": task, "kwargs": {} if mode is None else {"mode": mode}}


def seed_and_clock(observation: Observation) -> list[tuple[int, int]]:
    return [(int(seed), int(clock)) for seed, clock in observation.state["state"][:, :2].tolist()]


class LeakCheck(Recorder):
    """Every observation belongs to the episode that its environment is in, and is the one after the last."""

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._before: dict[int, tuple[int, int]] = {}
        self.finals: list[tuple[int, int]] = []

    def acting(self, episodes: Episodes, observation: Observation, actions: Tensor) -> Tensor:
        self._before = dict(zip(episodes.rows.tolist(), seed_and_clock(observation), strict=True))
        return actions

    def stepped(self, step: Step) -> None:
        after = seed_and_clock(step.observation)
        for row in range(len(after)):
            executed = int(step.num_executed[row])
            if row not in self._before:
                assert executed == 0
                assert not step.done[row]
                assert step.rewards[row].sum() == 0
                continue
            seed, clock = self._before[row]
            assert seed != FOREIGN
            assert after[row] == (seed, clock + executed)
            assert executed == min(self._chunk, Count.length(seed) - clock)
            assert step.rewards[row].tolist() == [1.0] * executed + [0.0] * (self._chunk - executed)
            ended = clock + executed == Count.length(seed)
            assert bool(step.terminated[row]) == (ended and Count.length(seed) % 2 == 0)
            assert bool(step.truncated[row]) == (ended and Count.length(seed) % 2 == 1)
            if ended:
                self.finals.append(after[row])


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.full), 3])
@pytest.mark.parametrize(("task", "mode"), WAYS)
def test_no_episode_leaks_into_the_next(task: str, mode: str | None, chunk: int) -> None:
    check = LeakCheck(chunk)
    with started(**way(task, mode)) as env:
        episodes = NumberedEpisodes(env, 0, "eval", 0, numbers=range(11))
        results = dict(play_episodes(episodes, lambda *seen: torch.zeros(len(seen[1]), chunk, 2), check))
    assert sorted(results) == list(range(11))
    assert len(check.finals) == 11
    assert sorted(clock for _, clock in check.finals) == sorted(result.length for result in results.values())
    assert all(result.total_reward == result.length for result in results.values())
    assert {result.success for result in results.values()} == {None}


@pytest.mark.parametrize(("task", "mode"), WAYS)
def test_training_episodes_go_on_over_rollouts_and_begin_anew_where_they_end(task: str, mode: str | None) -> None:
    check, ended = LeakCheck(1), 0
    with started(**way(task, mode)) as env:
        episodes = TrainingEpisodes(env, 0, stream=0, auto_reset=True)
        for _ in range(3):
            episodes.begin()
            for _ in range(8):
                check.acting(episodes, episodes.observed(), torch.zeros(0))
                step, finished = episodes.step(torch.zeros(len(episodes.rows), 1, 2))
                check.stepped(step)
                ended += len(finished)
                episodes.begin_finished()
                assert episodes.running.any()
        if env.capabilities.partial_reset:
            assert episodes.running.all()
    assert ended == len(check.finals) > 6


@pytest.mark.parametrize(("task", "mode"), QUICK)
def test_one_episode_per_rollout_ends_all_running_ones(task: str, mode: str | None) -> None:
    with started(**way(task, mode)) as env:
        episodes = TrainingEpisodes(env, 0, stream=0, auto_reset=False)
        for _ in range(3):
            episodes.begin()
            assert episodes.observation is not None
            assert [clock for _, clock in seed_and_clock(episodes.observation)] == [0, 0, 0]
            assert all(seed != FOREIGN for seed, _ in seed_and_clock(episodes.observation))
            episodes.step(torch.zeros(3, 3, 2))


@pytest.mark.parametrize(("task", "mode"), QUICK)
def test_the_limit_of_the_block_ends_episodes_too(task: str, mode: str | None) -> None:
    with started(**way(task, mode), limit=2) as env:
        episodes = NumberedEpisodes(env, 0, "eval", 0, numbers=range(5))
        results = dict(play_episodes(episodes, lambda *seen: torch.zeros(len(seen[1]), 1, 2)))
    assert [result.length for result in results.values()] == [2] * 5


def played(num_envs: int, seed: int, **settings: Any) -> list[EpisodeResult]:
    with started(num_envs=num_envs, **settings) as env:
        episodes = NumberedEpisodes(env, seed, "eval", 0, numbers=range(6))
        results = dict(play_episodes(episodes, lambda *seen: torch.zeros(len(seen[1]), 1, 2)))
    return [results[number] for number in range(6)]


def test_an_episode_depends_on_its_seed_alone() -> None:
    assert played(1, 3) == played(4, 3)
    assert played(1, 3) != played(1, 4)


@pytest.mark.parametrize(("task", "mode"), QUICK)
def test_success_by_key_and_by_termination(task: str, mode: str | None) -> None:
    for source in ({"success_key": "won"}, {"success": "terminated"}):
        results = played(2, 0, **way(task, mode), **source)
        assert {result.success for result in results} == {True, False}
        assert all(result.success == (result.length % 2 == 0) for result in results)


def test_what_the_mapping_can_name() -> None:
    mapping = {"main_images": "camera", "states": (StateEntry("episode/clock"), StateEntry("kind"))}
    with started(mapping=mapping, num_envs=2) as env:
        assert set(env.spec.raw_observations) == {"episode/seed", "episode/clock", "kind", "action", "camera"}
        assert env.spec.notes == ("observation 'name' is no array, so no policy can see it",)
        env.reset([0, 1], [1, 2])
        step = env.step(torch.zeros(2, 1, 2))
        assert step.observation.state["state"].tolist() == [[1.0, 0.0, 1.0, 0.0]] * 2  # kind 6 of 5 to 7
        assert step.observation.images["main"].shape == (2, 4, 6, 3)
        assert step.observation.images["main"].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("action", "bounds", "given", "executed"),
    [
        ("box", "clip", [3.0, -1.0], [2.0, 0.0]),
        ("box", "clip", [0.5, 7.0], [0.5, 7.0]),
        ("box", "rescale", [0.5, 0.5], [1.0, 7.5]),
        ("box", "rescale", [9.0, -9.0], [2.0, 0.0]),
        ("unbounded", "clip", [300.0, -1.0], [300.0, -1.0]),
        ("discrete", "clip", [0.1, 0.2, 0.0], [3.0, 3.0]),
        ("choices", "clip", [0.0, 1.0, 0.0, 0.1, 0.9], [1.0, 2.0]),
        ("flags", "clip", [0.3, -0.3], [1.0, 0.0]),
    ],
)
def test_actions(action: str, bounds: str, given: list[float], executed: list[float]) -> None:
    with started(num_envs=1, mapping={"action_bounds": bounds}, kwargs={"action": action}) as env:
        assert env.spec.action_dim == len(given)
        env.reset([0], [3])
        step = env.step(torch.tensor([[given]]))
        assert step.observation.state["state"][0, 2:].tolist() == pytest.approx(executed)


def test_instructions() -> None:
    with started(instruction_key="task", instructions=("even", "odd")) as env:
        observation = env.reset([0, 1, 2], [2, 3, 4])
        assert [text == "odd" for text in observation.instruction] == [
            seed % 2 == 1 for seed, _ in seed_and_clock(observation)
        ]
    with started(instruction_key="instruction", kwargs={"instruction": "count up"}) as env:
        assert env.reset([0, 1, 2], [2, 3, 4]).instruction == ["count up"] * 3


def test_frames_are_what_the_environment_renders() -> None:
    with contextlib.closing(
        RemoteVecEnv(
            config(num_envs=2),
            "eval",
            2,
            factory="regrasp.envs.gymnasium.child.main:create",
            settings={"options": {**vars(options_of(config(num_envs=2))), "renders": True}},
        )
    ) as env:
        env.record([1], 6, 10)
        env.reset([0, 1], [4, 9])
        frames = env.step(torch.zeros(2, 2, 2)).frames
        assert frames is not None
        assert frames[0, :, 0, 0, 0].tolist() == [1, 2]
        assert env.spec.step_seconds == 0.1


def options_of(block: GymnasiumTrainConfig) -> Any:
    from regrasp.envs.gymnasium.env import env_options

    return env_options(block, "train")


@pytest.mark.parametrize(
    ("task", "settings", "key", "texts"),
    [
        ("Pendulm-v1", {}, "init_params.id", ["'Pendulum-v1'"]),
        ("gym_envs:Coun-v0", {}, "init_params.id", ["Count-v0"]),
        ("no_such_module:Count-v0", {}, "init_params.id", ["No module named 'no_such_module'"]),
        ("gym_envs:Broken-v0", {}, "init_params.id", ["RuntimeError: no licence for the arm", "gym_envs.py"]),
        ("gym_envs:Needy-v0", {}, "init_params.id", ["box2d is not installed", f"install it for {sys.executable}"]),
        ("json:Count-v7", {}, "init_params.id", ["json was imported, and registers none of this name"]),
        (SINGLE, {"kwargs": {"colour": "red"}}, "init_params.kwargs", ["colour", "TypeError"]),
        ("Pendulum-v1", {"kwargs": {"gg": 3}}, "init_params.kwargs", ["can be made with: render_mode, g\n"]),
        (SINGLE, {"kwargs": {"action": "dict"}}, "init_params.id", ["Discrete"]),
        (SINGLE, {"vector": True}, "init_params.vector", ["false or null"]),
        (VECTOR, {"kwargs": {"mode": None}}, "init_params.id", ["AutoresetMode.NEXT_STEP"]),
        (SINGLE, {"instruction_key": "say"}, "init_params.instruction_key", ["(task)"]),
        (SINGLE, {"instruction_key": "task"}, "init_params.instruction_key", ["instructions that lists them"]),
        (
            SINGLE,
            {"mapping": {"action_bounds": "rescale"}, "kwargs": {"action": "unbounded"}},
            "mapping.action_bounds",
            ["clip"],
        ),
        (SINGLE, {"mapping": {"states": (StateEntry("clok"),)}}, "mapping.states[0]", ["episode/clock"]),
    ],
)
def test_mistakes_are_explained(task: str, settings: dict[str, Any], key: str, texts: list[str]) -> None:
    with pytest.raises(UserError) as caught, started(task, **settings):
        pass
    assert caught.value.key == f"env.train.{key}"
    assert all(text in str(caught.value) for text in texts), str(caught.value)


def test_a_package_that_only_rendering_needs_is_named() -> None:
    settings: dict[str, Any] = {"pixels": (4, 4), "mapping": {"main_images": "pixels"}}
    with pytest.raises(UserError) as caught, started("gym_envs:Unlit-v0", **settings) as env:
        env.reset([0], [4])
    assert "cannot be rendered: DependencyNotInstalled: pygame is not installed" in str(caught.value)
    assert caught.value.key == "env.train.init_params.pixels"
    assert f"install it for {sys.executable}" in str(caught.value)


@pytest.mark.parametrize(("task", "mode"), QUICK)
def test_a_wrong_success_key_names_what_info_holds(task: str, mode: str | None) -> None:
    with pytest.raises(UserError, match="clock, won") as caught:
        played(2, 0, **way(task, mode), success_key="is_success")
    assert caught.value.key == "env.train.init_params.success_key"


def test_an_id_with_both_entry_points_is_single_unless_asked() -> None:
    with started("gym_envs:CountBoth-v0") as env:
        assert env.capabilities.seed_per_env
    with started("gym_envs:CountBoth-v0", vector=True) as env:
        assert not env.capabilities.seed_per_env


def test_what_the_block_says_against_itself() -> None:
    wrong = config(success="terminated", success_key="won", instructions=("a",))
    assert [problem.key for problem in wrong.problems("env.train")] == [
        "env.train.init_params.success",
        "env.train.init_params.instructions",
    ]
