"""Random streams, derived from (seed, role) and keyed by what the number is for.

A number depends on its key alone, never on how many environments, workers or batches there are. Training and
evaluation roles never share a stream, even under the same seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Role = Literal["train", "eval", "data", "init"]
_ROLES: dict[str, int] = {"train": 0, "eval": 1, "data": 2, "init": 3}


def numpy_generator(seed: int, role: Role, *key: int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng(_sequence(seed, role, key))


def torch_generator(seed: int, role: Role, *key: int) -> torch.Generator:
    """A torch CPU generator for one purpose."""
    state = _sequence(seed, role, key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def episode_seed(seed: int, role: Role, *key: int) -> int:
    """The environment seed of one episode, below 2**53 so that JSON carries it exactly.

    Evaluation seeds are odd and all others even, so that no evaluation episode was ever trained on.
    """
    value = int(_sequence(seed, role, key).generate_state(1, np.uint64)[0])
    return (value >> 12 << 1) | (role == "eval")


def construction_seed(seed: int, role: Role, stream: int) -> int:
    """The seed under which a simulator is built, of the parity of its role's episodes and shared by none of them.

    Args:
        seed: Seed of the run.
        role: What the simulator is for.
        stream: `env.<train|eval>.seed`.
    """
    return episode_seed(seed, role, stream)


def _sequence(seed: int, role: Role, key: tuple[int, ...]) -> np.random.SeedSequence:
    """A spawn key of two words per number, so that keys of other lengths or with large numbers stay distinct."""
    words = (word for number in (_ROLES[role], *key) for word in (number & 0xFFFFFFFF, number >> 32))
    return np.random.SeedSequence(seed, spawn_key=tuple(words))


@dataclass(frozen=True)
class KeyedNoise:
    """Noise for B rows; row i depends on (seed, role, keys[i], name) alone.

    What the three numbers of a key are, `rollout/episodes.py` says. Streams are Philox counters (Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3"), as NumPy implements them.
    """

    seed: int
    role: Role
    keys: Sequence[tuple[int, int, int]]

    def normal(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) float32 standard normal numbers."""
        size = int(np.prod(shape, dtype=np.int64))
        rows = np.empty((len(self.keys), size), np.float32)
        for row, generator in zip(rows, self._generators(name), strict=True):
            generator.standard_normal(size, np.float32, row)
        return torch.from_numpy(rows.reshape(len(self.keys), *shape))

    def integers(self, name: str, high: int) -> Tensor:
        """(B,) int64 uniform numbers in [0, high)."""
        numbers = [int(generator.integers(high)) for generator in self._generators(name)]
        return torch.tensor(numbers, dtype=torch.long)

    def of_episode(self) -> KeyedNoise:
        """The noise of an episode's first decision, for all of them."""
        return replace(self, keys=[(first, second, 0) for first, second, _ in self.keys])

    def rows(self, rows: slice) -> KeyedNoise:
        """The noise of these rows."""
        return replace(self, keys=self.keys[rows])

    def _generators(self, name: str) -> Iterator[np.random.Generator]:
        """The generator of each row, until the next one is asked for; one of its own for each would cost five times."""
        stream = np.array([self.seed, _ROLES[self.role] << 32 | zlib.crc32(name.encode())], np.uint64)
        philox = np.random.Philox(key=stream)
        generator = np.random.Generator(philox)
        state: Any = philox.state
        for key in self.keys:
            state["state"]["counter"] = (0, *key)
            philox.state = state
            yield generator
