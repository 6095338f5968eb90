"""The episode loop: episodes are given to environments, stepped, accounted for and begun anew.

Every decision has a noise key, three numbers of which its noise depends alone (`seeding.KeyedNoise`):

- in training (environment, episode of that environment, decision in the episode);
- in evaluation and in demonstrations (episode, 0, decision in the episode), whichever environment it runs in.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regrasp.envs.contract import Observation, Step, VecEnv
from regrasp.errors import TrainingHaltedError
from regrasp.seeding import Role, episode_seed

NoiseKey = tuple[int, int, int]
Choose = Callable[[Observation, Tensor, Sequence[NoiseKey]], Tensor]
"""(observation of B environments, their rows, their noise keys) to simulator actions (B, T, A)."""


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode."""

    seed: int
    instruction: str
    success: bool | None
    """None where the task has no success signal."""
    total_reward: float
    length: int
    """Environment steps."""
    info: Mapping[str, float]
    """The task's own measures at the end."""


class Episodes(ABC):
    """Runs episodes in a vector environment, one chunk of all running environments at a time.

    Args:
        env: The environments.
        auto_reset: Begin a new episode where one ends, at once or, if single environments cannot be reset, as soon as
            all have ended; otherwise an environment rests until all begin anew.
        dtype: In which rewards are added up.
    """

    def __init__(self, env: VecEnv, *, auto_reset: bool, dtype: torch.dtype) -> None:
        count = env.spec.num_envs
        self.env = env
        self.running = torch.zeros(count, dtype=torch.bool)
        self.observation: Observation | None = None
        """Of all environments; its images are the simulator's own, see `Observation`."""
        self._auto_reset = auto_reset
        self._keys = torch.zeros(count, 2, dtype=torch.long)
        """The first two numbers of each environment's noise key."""
        self._seeds = torch.zeros(count, dtype=torch.long)
        self._decisions = torch.zeros(count, dtype=torch.long)
        self._returns = torch.zeros(count, dtype=dtype)
        self._lengths = torch.zeros(count, dtype=torch.long)
        self._success = torch.zeros(count, dtype=torch.bool)

    @abstractmethod
    def _next(self, env_ids: Sequence[int]) -> dict[int, int]:
        """Set the keys of the next episodes of `env_ids`, or of the first of them where no more are left.

        Returns:
            The seeds of those that have one, in the order given.
        """

    @property
    def rows(self) -> Tensor:
        """The running environments (B,) int64."""
        return torch.nonzero(self.running).flatten()

    def keys(self) -> list[NoiseKey]:
        """Noise keys of the next decisions of the running environments."""
        keys = torch.cat([self._keys, self._decisions[:, None]], 1)
        return [(first, second, decision) for first, second, decision in keys[self.running].tolist()]

    def observed(self) -> Observation:
        """The present observation of the running environments."""
        assert self.observation is not None
        return self.observation.rows(self.rows)

    def index(self, env_id: int) -> int:
        """The first number of an environment's key: the number of its episode in evaluation and demonstrations."""
        return int(self._keys[env_id, 0])

    def begin(self) -> None:
        """Every environment begins an episode unless, with `auto_reset`, it is to go on with its last one.

        With `auto_reset` of environments that can only be reset together, none does before all have ended.
        """
        if self._auto_reset and not self.env.capabilities.partial_reset and self.running.any():
            return
        resting = ~self.running if self._auto_reset else torch.ones_like(self.running)
        seeds = self._next(self._in_order(resting))
        if not seeds:
            return
        begun = list(seeds)
        self.running[begun] = True
        self._seeds[begun] = torch.tensor(list(seeds.values()))
        for counter in (self._decisions, self._returns, self._lengths, self._success):
            counter[begun] = 0
        self.observation = self.env.reset(begun, list(seeds.values()))
        check_state(self.observation)

    def step(self, actions: Tensor) -> tuple[Step, dict[int, EpisodeResult]]:
        """Execute a chunk, see `begin_step` and `end_step`."""
        self.begin_step(actions)
        return self.end_step()

    def begin_step(self, actions: Tensor) -> None:
        """Begin a chunk (B, T, A) of simulator actions in the running environments; the others rest."""
        chunk = torch.zeros(len(self.running), *actions.shape[1:])
        chunk[self.running] = actions
        self.env.begin_step(chunk)

    def end_step(self) -> tuple[Step, dict[int, EpisodeResult]]:
        """Wait for the chunk begun last.

        Returns:
            The step of all environments, and the episodes that it finished, by environment in the order of their keys.

        Raises:
            TrainingHaltedError: A reward or a state is not finite.
        """
        step = self.env.end_step()
        check_finite("reward", step.rewards)
        check_state(step.observation)
        self._decisions += self.running
        self._returns += step.rewards.sum(1)
        self._lengths += step.num_executed
        self._success |= step.success
        self.observation = step.observation
        finished = self._in_order(step.done & self.running)
        self.running[finished] = False
        return step, {row: self._result(row, step) for row in finished}

    def begin_finished(self) -> None:
        """With `auto_reset`, begin new episodes where one has ended."""
        if self._auto_reset and not self.running.all():
            self.begin()

    def _in_order(self, mask: Tensor) -> list[int]:
        """The environments of `mask` (N,) bool, sorted by their keys."""
        keys = self._keys.tolist()
        return sorted(torch.nonzero(mask).flatten().tolist(), key=keys.__getitem__)

    def _result(self, row: int, step: Step) -> EpisodeResult:
        return EpisodeResult(
            seed=int(self._seeds[row]),
            instruction=step.observation.instruction[row],
            success=bool(self._success[row]) if self.env.spec.tells_success else None,
            total_reward=float(self._returns[row]),
            length=int(self._lengths[row]),
            info={name: float(values[row]) for name, values in step.info.items()},
        )


class NumberedEpisodes(Episodes):
    """Episodes of one stream, in the order of their numbers, each in the next environment that is free.

    Args:
        env: The environments.
        seed: Episode i is seeded by (seed, role, *stream, i).
        role: "eval" or "data".
        stream: Key of the stream.
        numbers: Of the episodes to run; None for an endless supply.
        auto_reset: See `Episodes`.
    """

    def __init__(
        self,
        env: VecEnv,
        seed: int,
        role: Role,
        *stream: int,
        numbers: Iterable[int] | None = None,
        auto_reset: bool = True,
    ) -> None:
        super().__init__(env, auto_reset=auto_reset, dtype=torch.float64)
        self._seed_of = lambda index: episode_seed(seed, role, *stream, index)
        self._waiting = iter(itertools.count() if numbers is None else numbers)

    def _next(self, env_ids: Sequence[int]) -> dict[int, int]:
        seeds = {}
        for row, index in zip(env_ids, self._waiting, strict=False):
            self._keys[row, 0] = index
            seeds[row] = self._seed_of(index)
        return seeds


class Recorder:
    """What sees the steps of `play_episodes`."""

    def acting(self, episodes: Episodes, observation: Observation, actions: Tensor) -> Tensor:
        """Called before each step.

        Args:
            episodes: The episodes.
            observation: What the running environments were acted on, in the order of `episodes.rows`.
            actions: The chunk (B, T, A) chosen.

        Returns:
            The chunk to execute.
        """
        return actions

    def stepped(self, step: Step) -> None:
        """Called after each step."""


def play_episodes(
    episodes: Episodes, choose: Choose, recorder: Recorder | None = None
) -> Iterator[tuple[int, EpisodeResult]]:
    """Run episodes until none are left.

    Yields:
        Index and result of each episode as it ends.
    """
    recorder = recorder or Recorder()
    episodes.begin()
    while episodes.running.any():
        observation = episodes.observed()
        actions = choose(observation, episodes.rows, episodes.keys())
        step, finished = episodes.step(recorder.acting(episodes, observation, actions))
        recorder.stepped(step)
        yield from [(episodes.index(env_id), result) for env_id, result in finished.items()]
        episodes.begin_finished()
        if not episodes.running.any():
            episodes.begin()


def check_state(observation: Observation) -> None:
    """Stop the run at a not-a-number or infinity in the state; see `check_finite`."""
    for values in observation.state.values():
        check_finite("state observation", values)


def check_finite(name: str, values: Tensor) -> None:
    """Stop the run at a not-a-number or infinity from the simulator.

    Args:
        name: What the values are.
        values: (N, ...), one row per environment.

    Raises:
        TrainingHaltedError: Names the environment and what was not finite.
    """
    is_finite = torch.isfinite(values)
    if not is_finite.all():
        row = int(torch.nonzero(~is_finite)[0, 0])
        raise TrainingHaltedError(
            f"Environment {row} returned a {name} that is not finite:"
            f" {values[row].tolist()}. The run stopped before anything was learned from it."
        )
