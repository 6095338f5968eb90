"""Tensors between processes, as NumPy arrays: Ray's object store maps those into the reader's memory without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from regrasp.engine.handover import Part
from regrasp.envs.contract import Observation, Step

_AS_INTEGERS = {torch.bfloat16: torch.int16}
"""Formats that NumPy lacks, with one of its own of the same width."""

Packed = dict[str, tuple[str, np.ndarray]]
"""The name of a tensor's format and its bytes, by the tensor's name."""


def pack(tensors: Mapping[str, Tensor]) -> Packed:
    """Copies in host memory where the tensors are on a GPU, else views."""
    return {name: _packed(tensor) for name, tensor in tensors.items()}


def unpack(packed: Packed) -> dict[str, Tensor]:
    """The tensors, which must not be written to: their memory may be another process's."""
    return {name: _unpacked(kind, array) for name, (kind, array) in packed.items()}


def _packed(tensor: Tensor) -> tuple[str, np.ndarray]:
    own = tensor.detach().cpu()
    kind = str(own.dtype).removeprefix("torch.")
    return kind, own.contiguous().view(_AS_INTEGERS.get(own.dtype, own.dtype)).numpy()


def _unpacked(kind: str, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).view(getattr(torch, kind))


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of a tree on the way."""

    kind: str
    array: np.ndarray


class HostMemory:
    """Memory of the host for copies of a GPU's tensors, made again and again: fresh memory costs more than a copy."""

    def __init__(self) -> None:
        self._own: dict[int, Tensor] = {}

    def copied(self, number: int, tensor: Tensor) -> Tensor:
        """A copy of the `number`-th tensor that lasts until the next one; on the host, the tensor itself."""
        if not tensor.is_cuda:
            return tensor
        own = self._own.get(number)
        if own is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
            own = self._own[number] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return own.copy_(tensor)


def pack_tree(tree: Any, memory: HostMemory) -> Any:
    """A tree of mappings and sequences with its tensors packed, see `pack`."""
    leaves, structure = tree_flatten(tree)
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            leaves[number] = PackedTensor(*_packed(memory.copied(number, leaf)))
    return tree_unflatten(leaves, structure)


def unpack_tree(tree: Any) -> Any:
    """The tree, with tensors of its own."""

    def unpacked(leaf: Any) -> Any:
        return _unpacked(leaf.kind, leaf.array).clone() if isinstance(leaf, PackedTensor) else leaf

    return tree_map(unpacked, tree)


@dataclass(frozen=True)
class PackedObservation:
    """An `Observation` on the way."""

    images: Packed
    state: Packed
    instruction: list[str]

    @classmethod
    def of(cls, observation: Observation) -> PackedObservation:
        """Pack an observation."""
        return cls(pack(observation.images), pack(observation.state), observation.instruction)

    def unpack(self) -> Observation:
        """The observation."""
        return Observation(unpack(self.images), unpack(self.state), self.instruction)


@dataclass(frozen=True)
class PackedStep:
    """A `Step` on the way."""

    observation: PackedObservation
    outcome: Packed
    """Its tensors by the name of their field."""
    info: Packed

    @classmethod
    def of(cls, step: Step) -> PackedStep:
        """Pack a step."""
        fields: dict[str, Any] = vars(step)
        outcome = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
        return cls(PackedObservation.of(step.observation), pack(outcome), pack(step.info))

    def unpack(self) -> Step:
        """The step."""
        return Step(observation=self.observation.unpack(), info=unpack(self.info), **unpack(self.outcome))


@dataclass(frozen=True)
class PackedPart:
    """A `Part` on the way."""

    record: Packed
    index: Packed
    """Its `owner` and `rows`."""
    inputs: Packed
    traces: Packed
    are_encoded: bool

    @classmethod
    def of(cls, part: Part) -> PackedPart:
        """Pack a part."""
        index = pack({"owner": part.owner, "rows": part.rows})
        record, inputs, traces = (pack(_columns(table)) for table in (part.record, part.inputs, part.traces))
        return cls(record, index, inputs, traces, part.are_encoded)

    def unpack(self) -> Part:
        """The part."""
        index = unpack(self.index)
        return Part(
            record=TensorDict(unpack(self.record), batch_size=[len(index["owner"])]),
            inputs=TensorDict(unpack(self.inputs), batch_size=[len(index["rows"])]),
            traces=TensorDict(unpack(self.traces), batch_size=[len(index["rows"])]),
            are_encoded=self.are_encoded,
            **index,
        )


def _columns(table: TensorDict) -> dict[str, Tensor]:
    return {str(name): value for name, value in table.items() if isinstance(value, Tensor)}
