"""A `VectorEnv`, whose environments can only be stepped together.

What it does with an environment that has ended, `metadata["autoreset_mode"]` says, and none of that is ever seen:

- `NEXT_STEP`: the next step begins a new episode, and executes nothing.
- `SAME_STEP`: the new episode has begun already; the final observation and info are in `info`.
- `DISABLED`: it may not be stepped, so it is given a new episode, by `reset_mask`, before the others are.

An episode that began so has no seed of ours, and actions that were not meant for it go through it. So in the first two
modes an environment that has ended rests until all have, and all are reset together. In the third it can be reset by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from regrasp.envs.gymnasium.child.environments import Environments, Info, Stepped
from regrasp.envs.gymnasium.child.make import made
from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.envs.process.seeds import joint_seed
from regrasp.errors import UserError

_FINAL = ("final_obs", "final_info")


class VectorEnvironments(Environments):
    """`gymnasium.make_vec` of an id with a `vector_entry_point`.

    Args:
        spec: Gymnasium's record of the environment.
        num_envs: N.
        options: Settings.

    Raises:
        UserError: It cannot be made, or does not say how it resets itself.
    """

    seeds_each = False

    def __init__(self, spec: Any, num_envs: int, options: EnvOptions) -> None:
        if spec.vector_entry_point is None:
            raise UserError(
                "The environment has no vector entry point",
                key=f"{options.location}.init_params.vector",
                value=True,
                expected=f"false or null: {options.id} is registered as a single environment only",
                fix=f"remove {options.location}.init_params.vector; single environments are stepped in"
                f" {options.location}.num_workers processes",
            )
        if options.expert is not None:
            raise UserError(
                "The expert acts from a single environment, of which a vector environment has none",
                key=f"{options.location}.init_params.expert",
                value=options.expert,
                expected="null, where environments are only stepped together",
                fix="record a script that acts from our side, with --policy module:function; or, where it is registered"
                f" as a single environment too, set {options.location}.init_params.vector=false",
            )
        render = {"render_mode": "rgb_array"} if options.renders else {}
        limit = {} if spec.max_episode_steps is None else {"max_episode_steps": options.max_episode_steps}
        arguments = {**limit, **render, **options.kwargs}
        self._env: gymnasium.vector.VectorEnv[Any, Any, Any] = made(
            options,
            lambda: gymnasium.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **arguments),
            options.id,
            options.kwargs,
        )
        self.offered = [(self._env.single_observation_space, self._env.single_action_space)]
        self.metadata = self._env.metadata
        self._mode = _mode_of(self._env, options)
        self.resets_each = self._mode is AutoresetMode.DISABLED
        self._limit = options.max_episode_steps
        self._steps = np.zeros(num_envs, np.int64)
        self._running = np.zeros(num_envs, bool)
        self._ended = np.zeros(num_envs, bool)
        """Rows that `DISABLED` forbids to step."""

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Mapping[int, Info]:
        """See `Environments.reset`; all are reset unless others are in an episode, who then stay as they are."""
        mask = np.zeros(len(self._running), bool)
        mask[list(rows)] = True
        others = self._running & ~mask
        assert self.resets_each or not others.any(), "an environment was to begin an episode while others are in theirs"
        options = {"options": {"reset_mask": mask}} if others.any() else {}
        observation, infos = self._env.reset(seed=joint_seed(seeds), **options)
        self._running = mask | others
        self._steps[mask] = 0
        self._ended &= ~mask if others.any() else False
        self._show(np.asarray(rows), observation)
        return {row: _of_row(infos, row) for row in rows}

    def step(self, actions: np.ndarray, running: np.ndarray) -> Stepped:
        """See `Environments.step`; the others are stepped too, in episodes that nobody looks at."""
        if self._ended.any():
            self._env.reset(seed=0, options={"reset_mask": self._ended})
            self._ended = np.zeros_like(self._ended)
        observation, rewards, terminated, truncated, infos = self._env.step(actions)
        ended = np.asarray(terminated | truncated, bool)
        if self._mode is AutoresetMode.DISABLED:
            self._ended = ended.copy()
        self._steps += running
        going_on = running & ~ended
        self._running = going_on & (self._steps < self._limit)
        same_step = self._mode is AutoresetMode.SAME_STEP
        self._show(np.flatnonzero(going_on if same_step else running), observation)
        found = {}
        for row in np.flatnonzero(running).tolist():
            if same_step and ended[row]:
                self._show(row, _final_observation(infos, row))
                found[row] = _of_row(infos.get("final_info", {}), row)
            else:
                found[row] = _LazyInfo(infos, row)
        return Stepped(np.asarray(rewards, np.float32), np.asarray(terminated), np.asarray(truncated), found)

    def attribute(self, row: int, name: str) -> Any:
        """See `Environments.attribute`; one value for all, or a sequence with one for each."""
        value = getattr(self._env.unwrapped, name)
        return value if isinstance(value, str) or np.ndim(value) == 0 else value[row]

    def frames(self, rows: Sequence[int]) -> Sequence[Any]:
        """See `Environments.frames`."""
        images = self._env.render()
        assert images is not None, "it was made with render_mode rgb_array"
        return [images[row] for row in rows]

    def close(self) -> None:
        """See `Environments.close`."""
        self._env.close()


class _LazyInfo(Mapping[str, Any]):
    """The part of one row, taken out of the common info where it is asked for."""

    def __init__(self, infos: Mapping[str, Any], row: int) -> None:
        self._infos = infos
        self._row = row

    def __getitem__(self, key: str) -> Any:
        if not _has(self._infos, key, self._row):
            raise KeyError(key)
        return _part(self._infos[key], self._row)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._infos if _has(self._infos, key, self._row))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _has(infos: Mapping[str, Any], key: str, row: int) -> bool:
    """Whether a common info has the key for a row: a mask `_key` beside it says for which it has."""
    if key not in infos or key.startswith("_") or key in _FINAL:
        return False
    return f"_{key}" not in infos or bool(infos[f"_{key}"][row])


def _part(values: Any, row: int) -> Any:
    if isinstance(values, Mapping):
        return _of_row(values, row)
    return values if isinstance(values, str) or np.ndim(values) == 0 else values[row]


def _of_row(infos: Mapping[str, Any], row: int) -> Info:
    return dict(_LazyInfo(infos, row))


def _final_observation(infos: Mapping[str, Any], row: int) -> Any:
    """Of an environment that SAME_STEP has begun anew: an entry per environment, or a batch as observations are."""
    if "final_obs" not in infos:
        raise KeyError(f"an episode ended in SAME_STEP mode without info['final_obs']; info has {sorted(infos)}")
    return _entry(infos["final_obs"], row)


def _entry(values: Any, row: int) -> Any:
    if isinstance(values, Mapping):
        return {key: _entry(part, row) for key, part in values.items()}
    if isinstance(values, tuple):
        return tuple(_entry(part, row) for part in values)
    return values[row]


def _mode_of(env: gymnasium.vector.VectorEnv[Any, Any, Any], options: EnvOptions) -> AutoresetMode:
    mode = env.metadata.get("autoreset_mode")
    if isinstance(mode, AutoresetMode):
        return mode
    raise UserError(
        "The vector environment does not say what it does with an environment that has ended",
        key=f"{options.location}.init_params.id",
        value=options.id,
        expected=f"metadata['autoreset_mode'], one of {', '.join(map(str, AutoresetMode))}",
        fix="have its class declare it; or, where it is registered as a single environment too, set"
        f" {options.location}.init_params.vector=false",
    )
