"""The environment role of training: episodes, their seeds, and the mapping of actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regrasp.envs.contract import Observation, Step, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.errors import TrainingHaltedError, UserError
from regrasp.seeding import episode_seed


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode."""

    seed: int
    instruction: str
    success: bool
    total_reward: float
    length: int
    """Environment steps."""
    info: Mapping[str, float]
    """The task's own measures at the end."""


class EnvWorker:
    """Runs training episodes in a vector environment.

    Args:
        env: The environments.
        action_mapping: From policy actions to the simulator's.
        seed: Episodes draw their seeds from (seed, "train", stream, environment, episode).
        stream: `env.train.seed`.
        auto_reset: Begin a new episode at once where one ends; otherwise an environment rests until the next epoch.
    """

    def __init__(self, env: VecEnv, action_mapping: ActionMapping, seed: int, *, stream: int, auto_reset: bool) -> None:
        self.env = env
        self._action_mapping = action_mapping
        self._seed = seed
        self._stream = stream
        self._auto_reset = auto_reset
        count = env.spec.num_envs
        self._episodes = torch.full((count,), -1, dtype=torch.long)
        self._decisions = torch.zeros(count, dtype=torch.long)
        self._returns = torch.zeros(count)
        self._lengths = torch.zeros(count, dtype=torch.long)
        self._success = torch.zeros(count, dtype=torch.bool)
        self._seeds = [0] * count
        self.running = torch.zeros(count, dtype=torch.bool)
        self.observation: Observation | None = None

    def begin_epoch(self) -> None:
        """Start a rollout epoch: every environment begins an episode unless it is to go on with its last one."""
        rows = torch.nonzero(~self.running if self._auto_reset else torch.ones_like(self.running)).flatten()
        if len(rows):
            self._reset(rows)

    def keys(self, rows: Tensor) -> list[tuple[int, int, int]]:
        """Noise keys (environment, episode, decision) of the next decisions of `rows`."""
        return list(zip(rows.tolist(), self._episodes[rows].tolist(), self._decisions[rows].tolist(), strict=True))

    def step(self, rows: Tensor, actions: Tensor) -> tuple[Step, list[EpisodeResult]]:
        """Execute the policy's chunk (B, T, A) in the environments `rows`; the others rest.

        Returns:
            The step of all environments, and the episodes that it finished.
        """
        chunk = torch.zeros(self.env.spec.num_envs, actions.shape[1], self.env.spec.action_dim)
        chunk[rows] = self._action_mapping(actions)
        step = self.env.step(chunk)
        check_finite("reward", step.rewards)
        check_state(step.observation)
        self._decisions[rows] += 1
        self._returns += step.rewards.sum(1)
        self._lengths += step.num_executed
        self._success |= step.success
        self.observation = step.observation
        finished = torch.nonzero(step.done).flatten()
        results = [self._result(int(i), step) for i in finished]
        self.running[finished] = False
        return step, results

    def restart_finished(self) -> None:
        """With `auto_reset`, begin new episodes where one has ended."""
        rows = torch.nonzero(~self.running).flatten()
        if self._auto_reset and len(rows):
            self._reset(rows)

    def state_dict(self, *, simulators: bool = True) -> dict[str, Tensor]:
        """Counters and, with `simulators`, the simulator's own state where episodes go on over epochs."""
        state = {
            "episodes": self._episodes,
            "decisions": self._decisions,
            "returns": self._returns,
            "lengths": self._lengths,
            "success": self._success,
            "running": self.running,
            "seeds": torch.tensor(self._seeds),
        }
        if simulators and self._auto_reset and self.env.capabilities.saves_state:
            state |= {f"simulator.{name}": value for name, value in self.env.state_dict().items()}
        return {name: value.clone() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; without a simulator state, running episodes are begun anew.

        Raises:
            UserError: The state is that of another number of environments.
        """
        if len(state["episodes"]) != len(self._episodes):
            raise UserError(
                "The checkpoint was written with another number of environments",
                key="env.train.total_num_envs",
                value=len(self._episodes),
                expected=str(len(state["episodes"])),
                mend="resume with the number of environments that the run was begun with",
            )
        self._episodes = state["episodes"].clone()
        self._decisions = state["decisions"].clone()
        self._returns = state["returns"].clone()
        self._lengths = state["lengths"].clone()
        self._success = state["success"].clone()
        self._seeds = state["seeds"].tolist()
        simulator = {k.removeprefix("simulator."): v for k, v in state.items() if k.startswith("simulator.")}
        if simulator:
            self.observation = self.env.load_state_dict(simulator)
            self.running = state["running"].clone()

    def _reset(self, rows: Tensor) -> None:
        self._episodes[rows] += 1
        self._decisions[rows] = 0
        self._returns[rows] = 0
        self._lengths[rows] = 0
        self._success[rows] = False
        self.running[rows] = True
        for row in rows.tolist():
            self._seeds[row] = episode_seed(self._seed, "train", self._stream, row, int(self._episodes[row]))
        self.observation = self.env.reset(rows.tolist(), [self._seeds[row] for row in rows.tolist()])
        check_state(self.observation)

    def _result(self, row: int, step: Step) -> EpisodeResult:
        return EpisodeResult(
            seed=self._seeds[row],
            instruction=step.observation.instruction[row],
            success=bool(self._success[row]),
            total_reward=float(self._returns[row]),
            length=int(self._lengths[row]),
            info={name: float(values[row]) for name, values in step.info.items()},
        )


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
    bad = ~torch.isfinite(values).flatten(1).all(1)
    if bad.any():
        row = int(torch.nonzero(bad)[0])
        raise TrainingHaltedError(
            f"Environment {row} returned a {name} that is not finite:"
            f" {values[row].tolist()}. The run stopped before anything was learned from it."
        )
