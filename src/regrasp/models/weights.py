"""Model weights on disk: safetensors, one file or sharded, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrasp.checkpoint.hub_folder import load_safetensors, save_safetensors
from regrasp.errors import UserError

WEIGHTS_FILE = "model.safetensors"
_MAX_LISTED = 8


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: The file is missing, not JSON, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"A model folder without {file.name}", file=file, mend="give a complete model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Not valid JSON: {error}", file=file, mend="restore the file") from None
    if not isinstance(content, dict):
        raise UserError("Not a JSON object", file=file, expected="{...}")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, keys in the order given."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(module: nn.Module, folder: Path) -> None:
    """Write the module's weights as safetensors, in their own dtype.

    While a part of the module is frozen, that part has a shard of its own, which all checkpoints of a run share.
    """
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    save_safetensors(module.state_dict(), folder, frozen)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read `model.safetensors`, or the shards its index names, as float32 CPU tensors.

    Raises:
        UserError: A file is missing or damaged.
    """
    # A copy: what safetensors returns may be mapped to the file, and training writes in place.
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in load_safetensors(folder).items()}


def assign_weights(
    module: nn.Module, state: Mapping[str, Tensor], *, file: Path, optional: Collection[str] = ()
) -> set[str]:
    """Put every tensor of `state` in its place in `module` (which may live on the meta device).

    Args:
        module: Where the tensors go.
        state: Tensors by parameter name.
        file: Named in the error.
        optional: Child modules that may be absent from `state`, as a whole.

    Returns:
        The optional child modules that were absent; their parameters are untouched.

    Raises:
        UserError: Listing missing, unexpected and misshapen tensors.
    """
    expected = module.state_dict()
    absent = {part for part in optional if not any(name.startswith(f"{part}.") for name in state)}
    missing = [name for name in expected if name not in state and name.split(".")[0] not in absent]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or unexpected or misshapen:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        problem = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds if names)
        raise UserError(
            f"Weights that do not fit the configuration beside them. Tensors {problem}",
            file=file,
            mend="use the config.json and settings these weights were saved with",
        )
    module.load_state_dict(state, strict=False, assign=True)
    return absent


def _listed(names: list[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
