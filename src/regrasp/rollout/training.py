"""Training's episodes, and the loop that gathers what the policy decides in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence

import torch
from torch import Tensor

from regrasp.algorithms.base import Bootstrap
from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import UserError
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.episodes import EpisodeResult, Episodes
from regrasp.rollout.inference import Inference
from regrasp.seeding import episode_seed


class TrainingEpisodes(Episodes):
    """Episodes that each environment counts for itself, without end.

    Args:
        env: The environments.
        seed: Episodes draw their seeds from (seed, "train", stream, group, episode of the environment).
        stream: `env.train.seed`.
        auto_reset: See `Episodes`.
        group_size: So many environments, one after the other, form a group: their episodes of one number share seed
            and thereby instruction and first state, while their noise differs.
        first_env: The number of the first environment among all of the run, on which its seeds and noise depend.

    Raises:
        UserError: The environments do not divide into groups.
    """

    def __init__(
        self,
        env: VecEnv,
        seed: int,
        *,
        stream: int,
        auto_reset: bool,
        group_size: int = 1,
        first_env: int = 0,
    ) -> None:
        super().__init__(env, auto_reset=auto_reset, dtype=torch.float32)
        count = env.spec.num_envs
        if group_size > 1 and not env.capabilities.seed_per_env:
            raise UserError(
                "The episodes of a group begin alike, and this simulator cannot begin single environments alike",
                key="algorithm.group_size",
                value=group_size,
                expected="1",
                fix="take an algorithm that compares no groups, such as adv_type gae",
            )
        if count % group_size:
            raise UserError(
                "The training environments do not divide into groups",
                key="algorithm.group_size",
                value=group_size,
                expected=f"a divisor of env.train.total_num_envs ({count})",
                fix="change one of the two",
            )
        self._seed = seed
        self._stream = stream
        self._group_size = group_size
        self.first_env = first_env
        self._keys[:, 0] = torch.arange(first_env, first_env + count)
        self._keys[:, 1] = -1

    def _next(self, env_ids: Sequence[int]) -> dict[int, int]:
        self._keys[list(env_ids), 1] += 1
        return {
            row: episode_seed(self._seed, "train", self._stream, number // self._group_size, episode)
            for row, (number, episode) in zip(env_ids, self._keys[list(env_ids)].tolist(), strict=True)
        }

    def state_dict(self, *, simulators: bool = True) -> dict[str, Tensor]:
        """Counters and, with `simulators`, the simulator's own state where episodes go on over epochs."""
        state = {**self._counters(), "running": self.running}
        if simulators and self._auto_reset and self.env.capabilities.saves_state:
            state |= {f"simulator.{name}": value for name, value in self.env.state_dict().items()}
        return {name: value.clone() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned of as many environments.

        Without a simulator state, running episodes are begun anew.

        Raises:
            UserError: The state is that of another number of environments.
        """
        for name, own in (self._counters() | {"running": self.running}).items():
            kept = state.get(name)
            if kept is None or (kept.dtype, kept.dim(), kept.shape[1:]) != (own.dtype, own.dim(), own.shape[1:]):
                raise UserError(
                    "The checkpoint does not hold the state of running episodes",
                    key=name,
                    value=None if kept is None else f"{kept.dtype} {tuple(kept.shape)}",
                    expected=f"{own.dtype}, one for every environment",
                    fix="take another checkpoint of the run",
                )
        for name, counter in self._counters().items():
            counter.copy_(state[name])
        simulator = {k.removeprefix("simulator."): v for k, v in state.items() if k.startswith("simulator.")}
        self.running = torch.zeros_like(self.running)
        if simulator:
            self.observation = self.env.load_state_dict(simulator)
            self.running = state["running"].clone()

    def _counters(self) -> dict[str, Tensor]:
        return {
            "episodes": self._keys[:, 1],
            "decisions": self._decisions,
            "returns": self._returns,
            "lengths": self._lengths,
            "success": self._success,
            "seeds": self._seeds,
        }


def begins_anew(state: Collection[str], *, auto_reset: bool) -> bool:
    """Whether episodes cannot go on from what `TrainingEpisodes.state_dict` named, which was in the middle of them."""
    return auto_reset and not any(name.startswith("simulator.") for name in state)


def collect_rollout(
    stages: Sequence[TrainingEpisodes],
    inference: Inference,
    mapping: ActionMapping,
    buffer: RolloutBuffer,
    *,
    num_decisions: int,
    first_column: int,
    bootstrap: Bootstrap,
    should_stop: Callable[[], bool],
) -> list[EpisodeResult]:
    """One rollout epoch: every environment takes up to `num_decisions` decisions, which are added to `buffer`.

    While the environments of one stage execute a chunk, the policy decides for those of the next. Where an episode's
    return goes on, as `bootstrap` says, the value of the observation reached is added too.

    Args:
        stages: The environments, in parts that take turns.
        inference: What decides.
        mapping: From its actions to the simulator's.
        buffer: Where decisions are gathered.
        num_decisions: See above.
        first_column: Added to the number that an environment has in the run.
        bootstrap: See `Bootstrap`.
        should_stop: Asked before every decision.

    Returns:
        The episodes that ended.

    Raises:
        InterruptedError: `should_stop` said so.
    """
    results: list[EpisodeResult] = []
    to_value: list[tuple[int, Tensor, Observation]] = []

    def rolled_out(episodes: TrainingEpisodes) -> Generator[None]:
        """One stage; yields whenever its environments are at work."""
        values_truncated = bootstrap in ("truncated", "stored") and episodes.env.capabilities.true_final_observation
        first = first_column + episodes.first_env
        episodes.begin()
        for time in range(num_decisions):
            rows = episodes.rows
            if not len(rows):
                break
            if should_stop():
                raise InterruptedError
            keys = episodes.keys()
            decision = inference.decide(episodes.observed(), keys)
            episodes.begin_step(mapping(decision.action.actions.cpu()))
            try:
                yield
            finally:
                step, finished = episodes.end_step()
            results.extend(finished.values())
            buffer.add(
                time,
                rows + first,
                decision.inputs,
                decision.action,
                step.rewards[rows],
                step.num_executed[rows],
                step.done[rows],
                inference.version,
                step.success[rows],
                torch.tensor([number for *_, number in keys]),
            )
            cut = ~step.done & (time == num_decisions - 1 and bootstrap in ("cut", "truncated"))
            goes_on = cut | (step.truncated & values_truncated)
            places = torch.nonzero(goes_on[rows]).flatten()
            rows = rows[places]
            if len(rows) and bootstrap == "stored":
                numbers = [keys[place] for place in places.tolist()]
                after = [(env, episode, number + 1) for env, episode, number in numbers]
                final = inference.decide(step.observation.rows(rows), after)
                number = torch.tensor([number for *_, number in after])
                buffer.add_final(time, rows + first, final.inputs, final.action, number, inference.version)
            elif len(rows):
                to_value.append((time, rows + first, step.observation.rows(rows).clone()))
            episodes.begin_finished()

    waiting = deque(map(rolled_out, stages))
    try:
        while waiting:
            stage = waiting.popleft()
            for _ in stage:
                waiting.append(stage)
                break
    finally:
        for stage in waiting:
            stage.close()
    for time, columns, observation in to_value:
        buffer.bootstrap(time, columns, inference.values(observation))
    return results
