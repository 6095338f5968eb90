"""Random streams, derived from (seed, role) and keyed by what the number is for.

A number depends on its key alone, never on how many environments, workers or batches there are. Training and
evaluation roles never share a stream, even under the same seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Role = Literal["train", "eval", "data", "init"]
_ROLES: dict[str, int] = {"train": 0, "eval": 1, "data": 2, "init": 3}


def numpy_generator(seed: int, role: Role, *key: int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng([seed, _ROLES[role], *key])


def torch_generator(seed: int, role: Role, *key: int) -> torch.Generator:
    """A torch CPU generator for one purpose."""
    state = np.random.SeedSequence([seed, _ROLES[role], *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def episode_seed(seed: int, role: Role, *key: int) -> int:
    """The environment seed of one episode, below 2**53 so that JSON carries it exactly.

    Evaluation seeds are odd and all others even, so that no evaluation episode was ever trained on.
    """
    value = int(np.random.SeedSequence([seed, _ROLES[role], *key]).generate_state(1, np.uint64)[0])
    return (value >> 12 << 1) | (role == "eval")


@dataclass(frozen=True)
class KeyedNoise:
    """Noise for B rows; row i depends on (seed, role, keys[i], name) alone.

    Keys are (environment or episode, episode, decision) triples. Streams are Philox counters (Salmon et al. 2011,
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
        return torch.from_numpy(rows.reshape(-1, *shape))

    def integers(self, name: str, high: int) -> Tensor:
        """(B,) int64 uniform numbers in [0, high)."""
        return torch.tensor([int(generator.integers(high)) for generator in self._generators(name)])

    def _generators(self, name: str):
        stream = [self.seed & (2**64 - 1), _ROLES[self.role] << 32 | zlib.crc32(name.encode())]
        for key in self.keys:
            yield np.random.Generator(np.random.Philox(key=stream, counter=[0, *key]))
