"""Evaluation: fixed seeds, one episode per seed, an outcome that does not depend on how many environments run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regrasp.envs.contract import Observation, Step, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.rollout.episodes import EpisodeResult, check_finite, check_state
from regrasp.rollout.inference import Key, RolloutWorker
from regrasp.seeding import KeyedNoise, episode_seed

Choose = Callable[[Observation, Tensor, Sequence[Key]], Tensor]
"""(observation of B environments, their rows, their noise keys) to simulator actions (B, T, A)."""


@dataclass
class RecordedEpisode:
    """Frames of one episode."""

    index: int
    frames: Tensor
    """(L, H, W, 3) uint8."""
    rewards: Tensor
    """(L,) float32."""
    result: EpisodeResult


@dataclass(frozen=True)
class Recorder:
    """What to record of an evaluation."""

    num_episodes: int
    """The first so many episodes."""
    write: Callable[[RecordedEpisode], None]
    """Called as each of them ends."""


@dataclass
class _Running:
    """An episode in progress in one environment."""

    index: int
    seed: int
    decisions: int = 0
    length: int = 0
    total_reward: float = 0.0
    success: bool = False
    frames: list[Tensor] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)


def policy_chooser(rollout: RolloutWorker, mapping: ActionMapping, block: int) -> Choose:
    """Deterministic actions of a policy, inferred in blocks of `block` rows."""
    return lambda observation, _, keys: mapping(rollout.act_in_blocks(observation, keys, block))


def expert_chooser(env: VecEnv) -> Choose:
    """The task's scripted expert, one step at a time."""
    return lambda _observation, rows, _keys: env.expert_actions()[rows][:, None]


def zero_chooser(env: VecEnv) -> Choose:
    """No motion, one step at a time."""
    return lambda _observation, rows, _keys: torch.zeros(len(rows), 1, env.spec.action_dim)


def random_chooser(env: VecEnv, seed: int) -> Choose:
    """Uniform actions in [-1, 1], one step at a time."""

    def choose(_observation: Observation, _rows: Tensor, keys: Sequence[Key]) -> Tensor:
        normal = KeyedNoise(seed, "eval", keys).normal("random", 1, env.spec.action_dim)
        return torch.special.ndtr(normal) * 2 - 1

    return choose


class Evaluation:
    """Runs episodes 0 to M - 1 in N environments; an environment that finishes takes the next episode at once.

    Args:
        env: The environments.
        choose: What acts.
        seed: Episode i is seeded by (seed, "eval", stream, i).
        stream: `env.eval.seed`.
        on_episode: Called with every finished episode.
    """

    def __init__(
        self,
        env: VecEnv,
        choose: Choose,
        seed: int,
        stream: int,
        on_episode: Callable[[EpisodeResult], None] | None = None,
    ) -> None:
        self._env = env
        self._choose = choose
        self._seed = seed
        self._stream = stream
        self._on_episode = on_episode

    def run(self, num_episodes: int, recorder: Recorder | None = None) -> list[EpisodeResult]:
        """Evaluate, recording what `recorder` asks for.

        Returns:
            The results in the order of the episodes.
        """
        results: dict[int, EpisodeResult] = {}
        running: dict[int, _Running] = {}
        waiting = iter(range(num_episodes))
        recorded: list[int] = []
        first = range(min(num_episodes, self._env.spec.num_envs))
        observation = self._assign(first, waiting, running, None)
        while running:
            recorded = self._record(running, recorder, recorded)
            step = self._step(observation, running)
            self._account(step, running, recorded)
            observation = step.observation
            finished = [row for row in running if bool(step.done[row])]
            for row in finished:
                episode = running.pop(row)
                results[episode.index] = self._finish(episode, row, step, recorder)
            observation = self._assign(finished, waiting, running, observation)
        self._env.record([])
        return [results[i] for i in range(num_episodes)]

    def _assign(
        self,
        rows: Sequence[int],
        waiting: Iterator[int],
        running: dict[int, _Running],
        observation: Observation | None,
    ) -> Observation:
        """Begin the next waiting episodes in `rows`."""
        pairs = list(zip(rows, waiting, strict=False))
        if not pairs:
            assert observation is not None
            return observation
        for row, index in pairs:
            running[row] = _Running(index, episode_seed(self._seed, "eval", self._stream, index))
        chosen = [row for row, _ in pairs]
        observation = self._env.reset(chosen, [running[row].seed for row in chosen])
        check_state(observation)
        return observation

    def _record(self, running: dict[int, _Running], recorder: Recorder | None, recorded: list[int]) -> list[int]:
        count = 0 if recorder is None else recorder.num_episodes
        wanted = sorted(row for row, episode in running.items() if episode.index < count)
        if wanted != recorded:
            self._env.record(wanted)
        return wanted

    def _step(self, observation: Observation, running: dict[int, _Running]) -> Step:
        rows = torch.tensor(sorted(running))
        keys = [(running[row].index, 0, running[row].decisions) for row in rows.tolist()]
        actions = self._choose(observation.rows(rows), rows, keys)
        chunk = torch.zeros(self._env.spec.num_envs, actions.shape[1], self._env.spec.action_dim)
        chunk[rows] = actions
        step = self._env.step(chunk)
        check_finite("reward", step.rewards)
        check_state(step.observation)
        return step

    def _account(self, step: Step, running: dict[int, _Running], recorded: list[int]) -> None:
        for row, episode in running.items():
            length = int(step.num_executed[row])
            episode.decisions += 1
            episode.length += length
            episode.total_reward += float(step.rewards[row].sum())
            episode.success |= bool(step.success[row])
            if row in recorded:
                assert step.frames is not None
                episode.frames.append(step.frames[recorded.index(row), :length].clone())
                episode.rewards.append(step.rewards[row, :length])

    def _finish(self, episode: _Running, row: int, step: Step, recorder: Recorder | None) -> EpisodeResult:
        result = EpisodeResult(
            seed=episode.seed,
            instruction=step.observation.instruction[row],
            success=episode.success,
            total_reward=episode.total_reward,
            length=episode.length,
            info={name: float(values[row]) for name, values in step.info.items()},
        )
        if self._on_episode is not None:
            self._on_episode(result)
        if episode.frames and recorder is not None:
            recorder.write(
                RecordedEpisode(episode.index, torch.cat(episode.frames), torch.cat(episode.rewards), result)
            )
        return result
