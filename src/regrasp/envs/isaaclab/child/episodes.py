"""When environments are reset: only when we ask.

Isaac Lab resets a finished environment inside `step`, so the observation that `step` returns is already that of the
next episode. Three ways around that, by what the installed Isaac Lab offers:

- `Frozen` (3.x, `autoreset_mode`): automatic resets are switched off, a finished environment waits.
- `FinalObservation` (3.x, `compute_final_obs`): the environment begins a new episode that nobody looks at; the last
  observation of the finished one is delivered beside it.
- `Deferred` (2.x): the environment's own `_reset_idx`, through which every reset goes, does nothing during `step`, so
  that `step` returns the true final observation and the environment stands still where it ended.

`Deferred` also serves `ignore_terminations`, where no termination may reset anything.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regrasp.envs.isaaclab.child.observations import as_tensor, flatten
from regrasp.envs.process.seeds import joint_seed, seed31


@dataclass(frozen=True)
class Transition:
    """What one step led to: tensors on the simulator's device, owned by us."""

    observation: dict[str, Any]
    """(N, ...) by `group/key`; of a finished environment the final one."""
    rewards: Any
    """(N,) float."""
    terminated: Any
    """(N,) bool."""
    truncated: Any
    """(N,) bool."""


class Episodes:
    """An environment that is reset on request only, see the module's description."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self._takes_rows = "env_ids" in inspect.signature(env.reset).parameters

    def step(self, actions: Any) -> Transition:
        """Execute one action (N, A) in every environment; one that has ended may wait."""
        return _transition(self.env.step(actions))

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
        """Start an episode in each row; gives all observations."""
        return self._reset(rows, joint_seed(seeds))

    def _reset(self, rows: Sequence[int], seed: int) -> dict[str, Any]:
        env, indices = self.env, _indices(self.env, rows)
        if self._takes_rows:
            return flatten(env.reset(seed=seed, env_ids=indices)[0])
        # What the direct workflow's `reset` does, for some of the environments only.
        env.seed(seed)
        env._reset_idx(indices)
        env.scene.write_data_to_sim()
        env.sim.forward()
        if env.sim.has_rtx_sensors():
            for _ in range(getattr(env.cfg, "num_rerenders_on_reset", 1)):
                env.sim.render()
        return flatten(env._get_observations())


class Frozen(Episodes):
    """See the module's description."""


class FinalObservation(Episodes):
    """See the module's description."""

    def step(self, actions: Any) -> Transition:
        """Execute one action (N, A) in every environment."""
        torch = importlib.import_module("torch")
        result = self.env.step(actions)
        transition = _transition(result)
        ended = transition.terminated | transition.truncated
        if not bool(ended.any()):
            return transition
        final = flatten(result[4]["final_obs"])
        merged = {
            key: torch.where(ended.view(-1, *[1] * (value.dim() - 1)), final[key], value)
            for key, value in transition.observation.items()
        }
        return replace(transition, observation=merged)


class Deferred(Episodes):
    """See the module's description."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._reset_now: Callable[..., None] = env._reset_idx
        self._stepping = False
        env._reset_idx = self._reset_unless_stepping

    def _reset_unless_stepping(self, *args: Any, **kwargs: Any) -> None:
        if not self._stepping:
            self._reset_now(*args, **kwargs)

    def step(self, actions: Any) -> Transition:
        """Execute one action (N, A) in every environment."""
        rerenders = getattr(self.env.cfg, "num_rerenders_on_reset", None)
        self._stepping = True
        try:
            if rerenders:
                self.env.cfg.num_rerenders_on_reset = 0
            return super().step(actions)
        finally:
            self._stepping = False
            if rerenders:
                self.env.cfg.num_rerenders_on_reset = rerenders

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
        """Start an episode in each row, whose initial state depends on its own seed only; gives all observations."""
        for row, seed in zip(rows[:-1], seeds[:-1], strict=True):
            self.env.seed(seed31(seed))
            self._reset_now(_indices(self.env, [row]))
        return self._reset(rows[-1:], seed31(seeds[-1]))


def choose(config: Any, *, ignore_terminations: bool) -> type[Episodes]:
    """Pick the way that the installed Isaac Lab allows, and set it in the task's configuration."""
    if ignore_terminations:
        return Deferred
    if hasattr(config, "autoreset_mode"):
        config.autoreset_mode = importlib.import_module("gymnasium").vector.AutoresetMode.DISABLED
        return Frozen
    if hasattr(config, "compute_final_obs"):
        config.compute_final_obs = True
        return FinalObservation
    return Deferred


def _transition(result: tuple[Mapping[str, Any], Any, Any, Any, Any]) -> Transition:
    observation, rewards, terminated, truncated, _ = result
    # Isaac Lab writes each step's rewards and flags into the same buffers.
    owned = [as_tensor(value).clone() for value in (rewards, terminated, truncated)]
    return Transition(flatten(observation), *owned)


def _indices(env: Any, rows: Sequence[int]) -> Any:
    torch = importlib.import_module("torch")
    return torch.as_tensor(list(rows), dtype=torch.int64, device=env.device)
