"""A fine-tuned policy written in the layout that OpenVLA is published in."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from regrasp.checkpoint.hub_folder import StoredTensor, in_batches, list_safetensors, read_stored, save_shards
from regrasp.checkpoint.layout import EXPORT
from regrasp.checkpoint.read import checkpoint_of, load_full_weights
from regrasp.checkpoint.verify import require_sound_model
from regrasp.errors import UserError
from regrasp.folders import atomic_folder, require_output
from regrasp.logging.progress import progress
from regrasp.models.card import write_card
from regrasp.models.config import CONFIG_FILE, ExportOptions
from regrasp.models.lora import are_adapters
from regrasp.models.openvla.checkpoint import load_config, published_layout
from regrasp.models.openvla.decoding import DECODING_FILE
from regrasp.models.openvla.policy import OpenVlaPolicy
from regrasp.models.openvla.processing.action_scaling import STATISTICS_FILE
from regrasp.models.openvla.variants import ACTION_HEAD_FILES
from regrasp.models.weights import check_tensors, dtype_of, read_json, write_json

Source = StoredTensor | Tensor
_HEAD = "action_head."
_COMPANIONS = (
    "preprocessor_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    STATISTICS_FILE,
    DECODING_FILE,
)
"""What is copied as it is; `decoding.json` is left alone by other readers."""


def export(options: ExportOptions) -> Path:
    """Write a policy as published: config.json, weights, statistics, the files of the processor, and a model card.

    Returns:
        The folder written.

    Raises:
        UserError: A file is missing or damaged, the RL weights are of another model, or `output` is taken or cannot be
            written. Nothing remains of the attempt.
    """
    output = options.output
    require_output(output, key="--output")
    source = _trained_folder(options.rl_model_path) or options.model_path
    tensors = _tensors(options, source)
    with atomic_folder(output, checksums=True) as draft:
        content = read_json(source / CONFIG_FILE)
        dtypes = {str(_dtype(name, tensor, options)).removeprefix("torch.") for name, tensor in tensors.items()}
        if options.dtype is not None or "torch_dtype" not in content:
            content["torch_dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
        write_json(draft / CONFIG_FILE, content)
        for name in _COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, draft / name)
        options.origin.save(draft)
        write_card(draft, options.evaluation)
        head = {name: tensor for name, tensor in tensors.items() if name.startswith(_HEAD)}
        _write_weights({name: tensor for name, tensor in tensors.items() if name not in head}, options, draft)
        if head:
            _write_head(head, options, draft)
    return output


def _trained_folder(path: Path | None) -> Path | None:
    """The self-contained model folder in the checkpoint of ours that a path lies in, verified; None without one."""
    checkpoint = None if path is None else checkpoint_of(path)
    if checkpoint is None or not (checkpoint / EXPORT / CONFIG_FILE).is_file():
        return None
    require_sound_model(checkpoint / EXPORT)
    return checkpoint / EXPORT


def _tensors(options: ExportOptions, source: Path) -> dict[str, Source]:
    """What is written, checked against the base model's sizes."""
    given: Mapping[str, Source]
    origin, path = source, options.rl_model_path
    if path is not None and source == options.model_path:
        given, origin = load_full_weights(path), path
    else:
        given = list_safetensors(source)
    if found := [name for name in given if are_adapters(name)]:
        raise UserError(
            f"Weights with adapters that are not merged: {len(found)} tensors, such as {found[0]}",
            file=origin,
            fix="give a checkpoint with a model/ folder: a run's last, or any with runner.export_model=always",
        )
    extras = {name: tensor for name, tensor in given.items() if name.split(".")[0] in OpenVlaPolicy.RL_PARTS}
    head = {name: tensor for name, tensor in given.items() if name.startswith(_HEAD)}
    policy = {name: given[name] for name in sorted(given.keys() - extras.keys() - head.keys())}
    check_tensors(published_layout(load_config(options.model_path)), policy, file=origin)
    if options.with_value_head and not extras:
        raise UserError("There is no value head to keep", file=origin, key="--with_value_head")
    return {**policy, **head, **(extras if options.with_value_head else {})}


def _write_weights(tensors: Mapping[str, Source], options: ExportOptions, draft: Path) -> None:
    sizes = {name: math.prod(tensor.shape) * _dtype(name, tensor, options).itemsize for name, tensor in tensors.items()}
    needed, free = sum(sizes.values()), shutil.disk_usage(draft).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free")
    with progress("writing weights", len(tensors)) as task:

        def read(names: Sequence[str]) -> dict[str, Tensor]:
            shard: dict[str, Tensor] = {}
            stored = {name: tensor for name in names if isinstance(tensor := tensors[name], StoredTensor)}
            plain = {name: tensor for name in names if isinstance(tensor := tensors[name], Tensor)}
            for name, tensor in (*read_stored(stored), *plain.items()):
                shard[name] = tensor.to(_dtype(name, tensor, options), copy=True).contiguous()
                task.advance()
            return shard

        save_shards(draft, in_batches(sizes, options.max_shard_bytes), read)


def _write_head(head: Mapping[str, Source], options: ExportOptions, draft: Path) -> None:
    """OFT's own file of its regression head, without the deviation, for which it has no place."""
    stored = {name: tensor for name, tensor in head.items() if isinstance(tensor, StoredTensor)}
    plain = {name: tensor for name, tensor in head.items() if isinstance(tensor, Tensor)}
    weights = {
        name.removeprefix(_HEAD): tensor.to(_dtype(name, tensor, options), copy=True)
        for name, tensor in (*read_stored(stored), *plain.items())
        if not name.endswith("log_std")
    }
    torch.save(weights, draft / ACTION_HEAD_FILES.replace("*", "latest"))


def _dtype(name: str, tensor: Source, options: ExportOptions) -> torch.dtype:
    return dtype_of(name, tensor.dtype, options.dtype or tensor.dtype)
