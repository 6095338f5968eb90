"""Gymnasium's spaces as the flat arrays and vectors that cross the process border."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from regrasp.envs.gymnasium.child.options import EnvOptions
from regrasp.envs.process.simulator import ArraySpec
from regrasp.errors import UserError

WHOLE = "observation"
"""Name of an observation that is one array."""


@dataclass(frozen=True)
class Leaf:
    """One array of an observation."""

    path: tuple[str | int, ...]
    """Keys of the Dict and Tuple spaces that lead to it."""
    space: Space[Any]

    @property
    def key(self) -> str:
        """Its name, the path joined by slashes."""
        return "/".join(map(str, self.path)) or WHOLE

    @property
    def spec(self) -> ArraySpec:
        """How it crosses the border: numbers as they are, those of a Discrete or MultiDiscrete space one-hot."""
        if isinstance(self.space, spaces.Discrete | spaces.MultiDiscrete):
            return ArraySpec((int(np.sum(_counts(self.space))),), "float32")
        shape, dtype = self.space.shape, np.dtype(self.space.dtype)
        assert shape is not None
        if dtype == np.uint8 and len(shape) < 2:  # bytes that are no image
            dtype = np.dtype(np.float32)
        return ArraySpec(tuple(map(int, shape)), dtype.name)

    def of(self, observation: Any) -> np.ndarray:
        """Its values, (..., *shape), in an observation, or in one of a batch."""
        for part in self.path:
            observation = observation[part]
        if not isinstance(self.space, spaces.Discrete | spaces.MultiDiscrete):
            return np.asarray(observation)
        chosen = np.asarray(observation, np.int64) - np.asarray(self.space.start, np.int64)
        return _one_hot(chosen.reshape(*chosen.shape[: chosen.ndim - len(self.space.shape or ())], -1), self.space)


def _counts(space: spaces.Discrete | spaces.MultiDiscrete) -> np.ndarray:
    """How many values each choice of a space has."""
    return np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)


def _one_hot(chosen: np.ndarray, space: spaces.Discrete | spaces.MultiDiscrete) -> np.ndarray:
    """Choices (..., number), counted from 0, as vectors (..., sum of the counts) float32."""
    groups = [np.eye(count, dtype=np.float32)[chosen[..., i]] for i, count in enumerate(_counts(space))]
    return np.concatenate(groups, -1)


def leaves(space: Space[Any], options: EnvOptions) -> tuple[list[Leaf], list[str]]:
    """The arrays of an observation space, and the keys of what is no array and cannot be seen.

    Raises:
        UserError: Two of them would have the same name, or there are none.
    """
    found = list(_walk(space, ()))
    arrays = [leaf for leaf in found if _is_array(leaf.space)]
    names = [leaf.key for leaf in arrays]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not arrays:
        raise UserError(
            "Two observations have one name" if twice else "The environment has no observation that is an array",
            key=f"{options.location}.init_params.id",
            value=options.id,
            expected="Box, Discrete, MultiBinary or MultiDiscrete observations, or Dict and Tuple spaces of them whose"
            " keys, joined by slashes, differ",
            fix=f"wrap the environment: {twice[0] if twice else space}",
        )
    return arrays, [leaf.key for leaf in found if not _is_array(leaf.space)]


def _walk(space: Space[Any], path: tuple[str | int, ...]) -> Iterator[Leaf]:
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            yield from _walk(part, (*path, name))
    elif isinstance(space, spaces.Tuple):
        for number, part in enumerate(space.spaces):
            yield from _walk(part, (*path, number))
    else:
        yield Leaf(path, space)


def _is_array(space: Space[Any]) -> bool:
    kinds = (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
    return isinstance(space, kinds) and all(side > 0 for side in space.shape or ())


@dataclass(frozen=True)
class ActionDecoder:
    """From vectors to the actions of a space, and back."""

    width: int
    """Width of a vector."""
    decode: Callable[[np.ndarray], np.ndarray]
    """Vectors (N, width) float32 to actions (N, ...)."""
    encode: Callable[[Any], np.ndarray]
    """One action to the vector (width,) float32 of it; of one that `decode` would clip, to that of the clipped one."""


def action_decoder(space: Space[Any], options: EnvOptions) -> ActionDecoder:
    """How a policy's vectors become actions.

    A Box takes its values in order, see `action_bounds`. A Discrete space of n actions takes n scores, of which the
    highest chooses; MultiDiscrete has one such group per choice. MultiBinary is 1 where a value is above 0.

    Raises:
        UserError: The space is none of these, or has no bounds to rescale to.
    """
    match space:
        case spaces.Box():
            return _box(space, options)
        case spaces.Discrete():
            return _choices(space)
        case spaces.MultiDiscrete():
            return _choices(space)
        case spaces.MultiBinary():
            shape = space.shape
            return ActionDecoder(
                math.prod(shape),
                lambda values: (values > 0).reshape(-1, *shape).astype(np.int8),
                lambda action: np.where(np.ravel(action) > 0, 1, -1).astype(np.float32),
            )
    raise UserError(
        "Actions of this kind cannot be chosen by a policy",
        key=f"{options.location}.init_params.id",
        value=f"{options.id}: {space}",
        expected="a Box, Discrete, MultiDiscrete or MultiBinary action space",
        fix="wrap the environment, for example in gymnasium.wrappers.FlattenAction",
    )


def _box(space: spaces.Box, options: EnvOptions) -> ActionDecoder:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    rescales = options.action_bounds == "rescale"
    if rescales and not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(
            "The actions have no bounds to rescale to",
            key=f"{options.location}.mapping.action_bounds",
            value="rescale",
            expected=f"clip: the action space of {options.id} is {space}",
            fix=f"set {options.location}.mapping.action_bounds=clip, which passes what has no bound as it is, and"
            f" {options.location}.mapping.action_mapping.scale to the size of its actions",
        )

    def bounded(values: np.ndarray) -> np.ndarray:
        actions = values.reshape(-1, *space.shape).astype(np.float64)
        if rescales:
            actions = low + (actions + 1) / 2 * (high - low)
        actions = np.clip(actions, low, high)
        return np.rint(actions) if np.issubdtype(space.dtype, np.integer) else actions

    def encode(action: Any) -> np.ndarray:
        values = np.clip(np.asarray(action, np.float64).reshape(space.shape), low, high)
        if rescales:
            values = (values - low) / np.where(high > low, high - low, 1.0) * 2 - 1
        return values.ravel().astype(np.float32)

    return ActionDecoder(math.prod(space.shape), lambda values: bounded(values).astype(space.dtype), encode)


def _choices(space: spaces.Discrete | spaces.MultiDiscrete) -> ActionDecoder:
    counts, start, shape = _counts(space), np.asarray(space.start), space.shape or ()
    ends = np.cumsum(counts)

    def decode(values: np.ndarray) -> np.ndarray:
        chosen = [values[:, end - count : end].argmax(1) for end, count in zip(ends, counts, strict=True)]
        return (np.stack(chosen, 1).reshape(-1, *shape) + start).astype(space.dtype)

    def encode(action: Any) -> np.ndarray:
        return _one_hot(np.ravel(np.asarray(action, np.int64).reshape(shape) - start), space)

    return ActionDecoder(int(ends[-1]), decode, encode)
