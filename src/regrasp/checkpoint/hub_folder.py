"""The weights of a Hugging Face style folder: `model.safetensors`, or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrasp.checkpoint.plain import separate
from regrasp.errors import UserError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# More than one metadata key would be written in random order, and equal weights must give equal bytes.
_METADATA = {"format": "pt"}


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
    for old in (_SINGLE, _INDEX, *(file.name for file in folder.glob("model-*-of-*.safetensors"))):
        (folder / old).unlink(missing_ok=True)
    tensors = separate(state)
    frozen = {name: tensor for name, tensor in tensors.items() if name in frozen_names}
    trained = {name: tensor for name, tensor in tensors.items() if name not in frozen_names}
    if not frozen or not trained:
        save_file(tensors, folder / _SINGLE, metadata=_METADATA)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate((frozen, trained), start=1):
        file_name = f"model-{number:05d}-of-00002.safetensors"
        save_file(shard, folder / file_name, metadata=_METADATA)
        weight_map |= dict.fromkeys(shard, file_name)
    total_size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def load_safetensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a folder on the CPU, sorted by name.

    Raises:
        UserError: No weights in the folder, a missing or damaged shard, or an index that the shards do not fit.
    """
    if (folder / _SINGLE).is_file():
        return _load_file(folder / _SINGLE)
    if not (folder / _INDEX).is_file():
        raise UserError(
            "No weights in this folder.",
            file=folder / _SINGLE,
            expected=f"{_SINGLE}, or {_INDEX} with its shards",
            mend="Give a model folder in Hugging Face layout, for example `global_step_<N>/model`.",
        )
    weight_map = _read_index(folder / _INDEX)
    shards = sorted(set(weight_map.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise UserError(
            f"{len(missing)} of {len(shards)} weight files are missing: {', '.join(missing)}.",
            file=folder / _INDEX,
            mend="Download or copy the folder again, completely.",
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= _load_file(folder / shard)
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise UserError(
            f"The index lists {len(absent)} tensors that no shard holds, the first being {absent[0]}.",
            file=folder / _INDEX,
            mend="Download or copy the folder again, completely.",
        )
    return {name: tensors[name] for name in sorted(tensors)}


def _load_file(file: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"Not a sound safetensors file: {error}.", file=file, mend="Download or copy the file again."
        ) from error
    return {name: tensors[name] for name in sorted(tensors)}


def _read_index(file: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"Not a JSON file: {error}.", file=file) from error
    weight_map: Any = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(map(_is_plain_name, weight_map.values())):
        raise UserError(
            "This index does not map tensors to weight files of its folder.",
            file=file,
            key="weight_map",
            expected="tensor names mapped to plain file names",
        )
    return {str(name): str(shard) for name, shard in weight_map.items()}


def _is_plain_name(shard: Any) -> bool:
    return isinstance(shard, str) and shard == Path(shard).name
