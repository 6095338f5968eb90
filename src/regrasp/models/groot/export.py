"""A fine-tuned policy written in the layout that GR00T N1.5 is published in."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from regrasp.models.groot.checkpoint import load_config, published_layout, published_tensors
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.metadata import METADATA_FILE
from regrasp.models.groot.processing.processor import PROCESSOR_FILE
from regrasp.models.groot.processing.tokenizer import load_tokenizer
from regrasp.models.weights import check_tensors, dtype_of, read_json, write_json

Source = StoredTensor | Tensor
_PUBLISHED_KEYS = {
    "attn_implementation": None,
    "model_dtype": "float32",
    "transformers_version": "4.51.3",
    "backbone_cfg": {
        "eagle_path": None,
        "load_bf16": False,
        "tune_llm": False,
        "tune_visual": True,
        "use_flash_attention": True,
    },
    "action_head_cfg": {"model_dtype": "float32", "tune_diffusion_model": True, "tune_projector": True},
}
"""Keys of a published config.json that do not change the network, for a model whose own config.json lacks them."""


def export(options: ExportOptions) -> Path:
    """Write a policy as published: config.json, weights, metadata.json; and its tokenizer, processor and model card.

    Returns:
        The folder written.

    Raises:
        UserError: A file is missing or damaged, the RL weights are of another model, or
            `output` is taken or cannot be written. Nothing remains of the attempt.
    """
    output = options.output
    require_output(output, key="--output")
    config, content = load_config(options.model_path), read_json(options.model_path / CONFIG_FILE)
    trained = _trained_folder(options.rl_model_path)
    used = config if trained is None else load_config(trained)
    if used != config.with_denoising_steps(used.action_head_cfg.num_inference_timesteps):
        raise UserError(
            "The RL weights are of another model than the base model",
            file=trained,
            key="--rl_model_path",
            fix="give as --model_path the base model that this RL run started from",
        )
    tensors = _exported_tensors(options, config, trained)
    dtypes = {_written_dtype(name, tensor, options) for name, tensor in tensors.items()}
    with atomic_folder(output, checksums=True) as draft:
        _write_processor(options.model_path if trained is None else trained, draft)
        options.origin.save(draft)
        write_json(draft / CONFIG_FILE, _config_json(content, used, dtypes))
        write_card(draft, options.evaluation)
        _write_weights(tensors, options, draft)
    return output


def _trained_folder(path: Path | None) -> Path | None:
    """The self-contained model folder in the checkpoint of ours that a path lies in, verified; None without one.

    It is preferred to `full_weights.pt` because it knows how the model was used in training, and holds no adapters.
    """
    checkpoint = None if path is None else checkpoint_of(path)
    if checkpoint is None or not (checkpoint / EXPORT / CONFIG_FILE).is_file():
        return None
    require_sound_model(checkpoint / EXPORT)
    return checkpoint / EXPORT


def _exported_tensors(options: ExportOptions, config: GrootConfig, trained: Path | None) -> dict[str, Source]:
    """What is written, under its published name, checked against the base model's sizes."""
    given: Mapping[str, Source]
    if options.rl_model_path is not None and trained is None:
        given, origin = load_full_weights(options.rl_model_path), options.rl_model_path
    else:
        origin = options.model_path if trained is None else trained
        given = list_safetensors(origin)
    if adapters := [name for name in given if ".lora_" in name]:
        raise UserError(
            f"Weights with adapters that are not merged: {len(adapters)} tensors, such as {adapters[0]}",
            file=origin,
            fix="give a checkpoint with a model/ folder: a run's last, or any with runner.export_model=always",
        )
    tensors = published_tensors(given, origin)
    if any(name.startswith(("residual.", "noise_actor.")) for name in tensors):
        raise UserError(
            "This policy acts with an actor beside its head, for which the published layout has no place",
            file=origin,
            key="--rl_model_path",
            expected="a policy without one",
            fix="use the folder as it is, or export what `regrasp distill --model_path <this folder>` makes of it",
        )
    extras = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in GrootPolicy.RL_PARTS}
    policy = {name: tensors[name] for name in sorted(tensors.keys() - extras.keys())}
    check_tensors(published_layout(config), policy, file=origin)
    if options.with_value_head and not extras:
        raise UserError("There is no value head to keep", file=origin, key="--with_value_head")
    return {**policy, **extras} if options.with_value_head else policy


def _write_processor(source: Path, draft: Path) -> None:
    """The files that are not weights, and that loading needs."""
    (draft / METADATA_FILE).parent.mkdir()
    write_json(draft / METADATA_FILE, read_json(source / METADATA_FILE))
    if (source / PROCESSOR_FILE).is_file():
        write_json(draft / PROCESSOR_FILE, read_json(source / PROCESSOR_FILE))
    load_tokenizer(source).save_pretrained(draft)


def _config_json(content: Mapping[str, Any], config: GrootConfig, dtypes: Collection[torch.dtype]) -> dict[str, Any]:
    dtype = str(next(iter(dtypes)) if len(dtypes) == 1 else torch.float32).removeprefix("torch.")
    return _merged(_merged(_PUBLISHED_KEYS, content), {**config.to_json(), "torch_dtype": dtype})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other."""
    both = {
        key: _merged(below[key], value) if isinstance(value, Mapping) and isinstance(below.get(key), Mapping) else value
        for key, value in above.items()
    }
    return {**below, **both}


def _write_weights(tensors: Mapping[str, Source], options: ExportOptions, draft: Path) -> None:
    sizes = {
        name: math.prod(tensor.shape) * _written_dtype(name, tensor, options).itemsize
        for name, tensor in tensors.items()
    }
    needed, free = sum(sizes.values()), shutil.disk_usage(draft).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free")
    with progress("writing weights", len(tensors)) as task:

        def read(names: Sequence[str]) -> dict[str, Tensor]:
            shard = {}
            for name, tensor in _read(tensors, names):
                shard[name] = tensor.to(_written_dtype(name, tensor, options), copy=True).contiguous()
                task.advance()
            return shard

        save_shards(draft, in_batches(sizes, options.max_shard_bytes), read)


def _read(tensors: Mapping[str, Source], names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    stored = {name: tensor for name in names if isinstance(tensor := tensors[name], StoredTensor)}
    yield from read_stored(stored)
    yield from ((name, tensor) for name in names if isinstance(tensor := tensors[name], Tensor))


def _written_dtype(name: str, tensor: Source, options: ExportOptions) -> torch.dtype:
    return dtype_of(name, tensor.dtype, options.dtype or tensor.dtype)
