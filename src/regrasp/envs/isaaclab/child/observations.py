"""Isaac Lab's nested observation dictionaries as flat arrays by `group/key`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from regrasp.envs.process.simulator import ArraySpec


def flatten(observation: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors (N, ...) by `group/key`; a group whose terms are concatenated keeps the group's name."""
    return dict(_walk(observation, ""))


def _walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}/")
        else:
            yield prefix + name, as_tensor(value)


def as_tensor(value: Any) -> Any:
    """The torch tensor of an array; Isaac Lab 3.x wraps some of them."""
    return value.torch if hasattr(value, "torch") else value


def describe(flat: Mapping[str, Any]) -> dict[str, ArraySpec]:
    """Shape without the environment axis, and NumPy dtype name, of each observation."""
    return {key: ArraySpec(tuple(value.shape[1:]), dtype_name(value)) for key, value in flat.items()}


def dtype_name(tensor: Any) -> str:
    """The NumPy dtype that holds the tensor; NumPy has no bfloat16."""
    name = str(tensor.dtype).removeprefix("torch.")
    return "float32" if name == "bfloat16" else name


def copy_rows(tensor: Any, rows: Sequence[int], target: np.ndarray) -> None:
    """Copy rows of a tensor (N, ...), on any device, into a shared array (N, ...), crossing the border once."""
    torch = importlib.import_module("torch")
    if len(rows) == len(target):
        torch.from_numpy(target).copy_(tensor)
        return
    index = torch.as_tensor(rows, device=tensor.device)
    target[rows] = tensor[index].to("cpu", getattr(torch, target.dtype.name)).numpy()
