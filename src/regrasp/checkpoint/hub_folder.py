"""The weights of a Hugging Face style folder: `model.safetensors`, or shards with an index."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regrasp.checkpoint.plain import separate
from regrasp.errors import UserError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"
# More than one metadata key would be written in random order, and equal weights must give equal bytes.
_METADATA = {"format": "pt"}
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LFS_POINTER = b"version https://git-lfs"
_AGAIN = "Download or copy the file again."
_MAPPED_BYTES = 128_000_000
"""A file is mapped anew after about as many bytes, because what was read of it stays in memory while it is mapped."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, of which only the file's header has been read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def save_safetensors(state: Mapping[str, Tensor], folder: Path, frozen_names: Set[str] = frozenset()) -> None:
    """Write weights so that any Hugging Face reader loads them; earlier weight files of the folder are replaced.

    With `frozen_names`, the frozen tensors go to a shard of their own, whose bytes are the same in every checkpoint of
    a run, so that `write_checkpoint` stores it once. Tensors that share memory are written once per name.

    Args:
        state: Dense tensors on any device.
        folder: Created if missing.
        frozen_names: Names of `state` that do not change during the run; other names are ignored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (_SINGLE, _INDEX, *(file.name for file in folder.glob(_SHARDS))):
        (folder / old).unlink(missing_ok=True)
    tensors = separate(state)
    frozen = {name: tensor for name, tensor in tensors.items() if name in frozen_names}
    trained = {name: tensor for name, tensor in tensors.items() if name not in frozen_names}
    shards = [list(part) for part in (frozen, trained) if part] or [[]]
    save_shards(folder, shards, lambda names: {name: tensors[name] for name in names})


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write one weight file: dense tensors on the CPU, each with memory of its own."""
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file, metadata=_METADATA)
    file.chmod(mode)  # as the umask says: safetensors writes files that only their owner can read


def save_shards(
    folder: Path, shards: Sequence[Sequence[str]], read: Callable[[Sequence[str]], Mapping[str, Tensor]]
) -> None:
    """Write weights shard by shard: one plain file, or numbered ones with an index.

    Args:
        folder: Where to; it exists and holds no weights.
        shards: Names of the tensors of each file.
        read: Gives the tensors of a shard, dense, on the CPU and each with memory of its own.
    """
    weight_map: dict[str, str] = {}
    total_size = 0
    for number, names in enumerate(shards, start=1):
        tensors = dict(read(names))
        file_name = _SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(tensors, folder / file_name)
        weight_map |= dict.fromkeys(names, file_name)
        total_size += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def list_safetensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's weights, from the headers of its files, in the order they lie on disk.

    Raises:
        UserError: No weights in the folder, shards without an index, a missing or damaged shard, an index that the
            shards do not fit, or tensors of a type that is not read (quantised ones).
    """
    if (folder / _SINGLE).is_file():
        return {tensor.name: tensor for tensor in list_file(folder / _SINGLE)}
    index = folder / _INDEX
    if not index.is_file():
        raise _without_weights(folder)
    weight_map = _read_index(index)
    shards = sorted(set(weight_map.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise _incomplete(f"{len(missing)} of {len(shards)} weight files are missing: {', '.join(missing)}.", index)
    tensors: dict[str, StoredTensor] = {}
    for tensor in (tensor for shard in shards for tensor in list_file(folder / shard)):
        if twin := tensors.get(tensor.name):
            raise _incomplete(f"Two weight files hold {tensor.name}: {twin.file.name}, {tensor.file.name}.", index)
        tensors[tensor.name] = tensor
    found = {name: tensor.file.name for name, tensor in tensors.items()}
    absent = [name for name in sorted(weight_map) if found.get(name) != weight_map[name]]
    if absent:
        first = f"the first being {absent[0]} of {weight_map[absent[0]]}"
        raise _incomplete(f"The index lists {len(absent)} tensors that their file does not hold, {first}.", index)
    return tensors


def read_stored(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Read tensors one after the other, file by file.

    Args:
        tensors: What to read, under names of the caller's own.

    Yields:
        Name and tensor. It is mapped to its file: copy it, or drop it before asking for the next one.

    Raises:
        UserError: A file is damaged or has become unreadable.
    """
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name, stored in tensors.items():
        by_file[stored.file].append(name)
    for file, names in by_file.items():
        for batch in in_batches({name: tensors[name].nbytes for name in names}, _MAPPED_BYTES):
            with _opened(file) as content:
                for name in batch:
                    yield name, content.get_tensor(tensors[name].name)


def in_batches(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Split names into consecutive batches whose sizes sum to at most `limit`; a larger item is a batch by itself."""
    batches: list[list[str]] = []
    room = -1
    for name, size in sizes.items():
        if size > room:
            batches.append([])
            room = limit
        batches[-1].append(name)
        room -= size
    return batches


def load_safetensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a folder on the CPU, sorted by name.

    Raises:
        UserError: As `list_safetensors`.
    """
    tensors = {name: tensor.clone() for name, tensor in read_stored(list_safetensors(folder))}
    return {name: tensors[name] for name in sorted(tensors)}


def _without_weights(folder: Path) -> UserError:
    """What a folder has in place of `model.safetensors` or an index."""
    shards = sorted(file.name for file in folder.glob(_SHARDS))
    if shards:
        return _incomplete(
            f"The index of the weights is missing; {len(shards)} weight files are here, the first {shards[0]}.",
            folder / _INDEX,
        )
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
    return UserError(
        "No weights in this folder.",
        file=folder / _SINGLE,
        expected=f"{_SINGLE}, or {_INDEX} with its shards",
        fix="Convert its weights to safetensors: pickled ones are not read, because reading them runs code."
        if pickled
        else "Give a model folder in Hugging Face layout, for example `global_step_<N>/model`.",
    )


def _read_index(file: Path) -> dict[str, str]:
    try:
        content: Any = from_json(file.read_bytes())
    except ValueError as error:
        raise UserError(f"Not a JSON file: {error}.", file=file, fix=_AGAIN) from error
    weight_map: Any = content.get("weight_map") if isinstance(content, dict) else None
    shards = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(shard, str) and shard == Path(shard).name for shard in shards):
        raise UserError(
            "This index does not map tensors to weight files of its folder.",
            file=file,
            key="weight_map",
            expected="tensor names mapped to plain file names",
            fix=_AGAIN,
        )
    return {str(name): shard for name, shard in weight_map.items()}


def list_file(file: Path) -> list[StoredTensor]:
    """Every tensor of one weight file, from its header.

    Raises:
        UserError: The file is damaged, or its tensors are of a type that is not read.
    """
    with _opened(file) as content:
        slices = {name: content.get_slice(name) for name in content.offset_keys()}
        found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    if foreign := sorted({dtype for _, dtype in found.values()} - _DTYPES.keys()):
        raise UserError(
            f"Weights of a type that is not read: {', '.join(foreign)}.",
            file=file,
            expected=", ".join(_DTYPES),
            fix="Give the weights as they were before they were quantised.",
        )
    return [StoredTensor(file, name, shape, _DTYPES[dtype]) for name, (shape, dtype) in found.items()]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as content:
            yield content
    except OSError as error:
        raise UserError(f"The file cannot be read: {error}.", file=file, fix=_AGAIN) from error
    except SafetensorError as error:
        if _is_lfs_pointer(file):
            raise UserError(
                "A pointer of git-lfs in place of the file.", file=file, fix="Run `git lfs pull` in its repository."
            ) from error
        raise UserError(f"Not a sound safetensors file: {error}.", file=file, fix=_AGAIN) from error


def _is_lfs_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_LFS_POINTER)) == _LFS_POINTER


def _incomplete(problem: str, index: Path) -> UserError:
    return UserError(problem, file=index, fix="Download or copy the folder again, completely.")
