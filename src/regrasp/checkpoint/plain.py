"""Reduce nested state to what loads without pickle: plain tensors, numbers, strings, lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def plain(value: Any, where: str) -> Any:
    """Nested state in the form that `torch.load(weights_only=True)` accepts.

    Tensors are detached, on the CPU, and no larger on disk than they look; two names of the same tensor stay one.

    Args:
        value: Tensors, numbers, strings and None in dicts, lists and tuples.
        where: What `value` is, for the error.

    Raises:
        TypeError: Something else is inside, for example a sharded tensor that was not gathered.
    """
    return _plain(value, where, {})


def _plain(value: Any, where: str, copies: dict[tuple[Any, ...], tuple[Tensor, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        return _plain_tensor(value, where, copies)
    if isinstance(value, Mapping):
        if bad := [key for key in value if type(key) not in (str, int)]:
            raise TypeError(f"{where} has a key {bad[0]!r} that is neither a string nor an integer")
        return {key: _plain(item, f"{where}[{key!r}]", copies) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{where}[{index}]", copies) for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which does not load without pickle")


def _plain_tensor(tensor: Tensor, where: str, copies: dict[tuple[Any, ...], tuple[Tensor, Tensor]]) -> Tensor:
    source = tensor.detach()
    if type(source) is not Tensor or source.layout is not torch.strided or source.is_meta:
        raise TypeError(
            f"{where} is not a plain dense tensor ({type(source).__name__}); gather or materialise it first"
        )
    key = (source.device, source.data_ptr(), source.shape, source.stride(), source.dtype)
    if key not in copies:
        copy = source.cpu()
        # The source is kept alive beside its copy: its address identifies it only while it lives.
        copies[key] = (source, copy if _is_compact(copy) else copy.clone())
    return copies[key][1]


def check_json(value: Any, where: str) -> None:
    """Assure that a value survives JSON unchanged.

    Raises:
        TypeError: JSON would refuse or alter it (a tuple, a key that is not a string, a NumPy number).
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r}; JSON keys are strings")
            check_json(item, f"{where}[{key!r}]")
    elif type(value) is list:
        for index, item in enumerate(value):
            check_json(item, f"{where}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(f"{where} is a {type(value).__name__}; JSON knows numbers, strings, lists and dicts only")


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors contiguous and on the CPU, each with memory of its own, as safetensors wants them."""
    separated: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if not _is_compact(own) or own.data_ptr() in addresses:
            own = own.clone()
        addresses.add(own.data_ptr())
        separated[name] = own
    return separated


def _is_compact(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.nbytes
