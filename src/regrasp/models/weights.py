"""Model weights on disk: safetensors, one file or sharded, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrasp.checkpoint.hub_folder import StoredTensor, read_stored, save_safetensors
from regrasp.config import parse
from regrasp.errors import UserError
from regrasp.models.contract import Policy

WEIGHTS_FILE = "model.safetensors"
_MAX_LISTED = 8

DtypeRule = torch.dtype | Callable[[str], torch.dtype] | None
"""Of what dtype loaded weights are: one for all, one by parameter name, or (None) as stored."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder.

    Raises:
        UserError: The file is missing, cannot be read, or is not JSON or not an object.
    """
    fix = "restore the file, or give a complete model folder"
    return parse.read_json(file, fix=fix, missing=f"A model folder without {file.name}")


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, keys in the order given."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(policy: Policy, folder: Path) -> None:
    """Write a policy's published weights as safetensors, in their own dtype.

    While a part of the policy is frozen, that part has a shard of its own, which all checkpoints of a run share.
    """
    frozen = {name for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    save_safetensors(policy.published_state(), folder, frozen)


def assign_weights(
    module: nn.Module,
    stored: Mapping[str, StoredTensor],
    *,
    file: Path,
    optional: Collection[str] = (),
    dtype: DtypeRule = None,
) -> set[str]:
    """Read every tensor of `stored` into its place in `module` (which may live on the meta device).

    Names and shapes are checked before any data is read, and tensors are read one by one, so that the host's memory
    holds little more than the loaded module.

    Args:
        module: Where the tensors go; its names and shapes are what is expected.
        stored: Tensors on disk, by parameter name.
        file: Named in the error.
        optional: Child modules that may be absent from `stored`, as a whole.
        dtype: Of the loaded floating-point tensors.

    Returns:
        The optional child modules that were absent; their parameters are untouched.

    Raises:
        UserError: Listing missing, unexpected and misshapen tensors, or those of the wrong kind of numbers.
    """
    absent = check_weights(module, stored, file=file, optional=optional)
    # A copy of each: what is read is mapped to the file, and training writes in place.
    state = {name: tensor.to(dtype_of(name, tensor.dtype, dtype), copy=True) for name, tensor in read_stored(stored)}
    module.load_state_dict(state, strict=False, assign=True)
    return absent


def check_weights(
    module: nn.Module, stored: Mapping[str, StoredTensor], *, file: Path, optional: Collection[str] = ()
) -> set[str]:
    """Compare the tensors on disk with those of a module, without reading them; see `assign_weights`.

    Returns:
        The optional child modules that are absent.

    Raises:
        UserError: Listing missing, unexpected and misshapen tensors, or those of the wrong kind of numbers.
    """
    absent = {part for part in optional if not any(name.startswith(f"{part}.") for name in stored)}
    wanted = {name: own for name, own in module.state_dict().items() if name.split(".")[0] not in absent}
    check_tensors(wanted, stored, file=file)
    return absent


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor | StoredTensor], *, file: Path) -> None:
    """Compare the tensors of a model with those of a file: names, shapes, and whether they are fractions.

    Raises:
        UserError: Listing missing, unexpected and misshapen tensors, or those of the wrong kind of numbers.
    """
    common = expected.keys() & found.keys()
    shapes = {name: (tuple(found[name].shape), tuple(expected[name].shape)) for name in expected if name in common}
    lists = {
        "missing": [name for name in expected if name not in common],
        "unexpected": [name for name in found if name not in common],
        "of another shape": [
            f"{name} {own} instead of {other}" for name, (own, other) in shapes.items() if own != other
        ],
    }
    if any(lists.values()):
        problem = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in lists.items() if names)
        raise UserError(
            f"Weights that do not fit the configuration beside them. Tensors {problem}",
            file=file,
            fix="use the config.json and settings these weights were saved with",
        )
    floats = {name: tensor.dtype.is_floating_point for name, tensor in expected.items()}
    if wrong := [name for name, is_float in floats.items() if is_float != found[name].dtype.is_floating_point]:
        raise UserError(
            f"Whole numbers in place of fractions, or the other way round, in {len(wrong)} tensors: {_listed(wrong)}",
            file=file,
            fix="give the weights as they were before they were quantised",
        )


def dtype_of(name: str, stored: torch.dtype, rule: DtypeRule) -> torch.dtype:
    """Which dtype a tensor gets that is stored in another; whole numbers keep theirs."""
    if rule is None or not stored.is_floating_point:
        return stored
    return rule if isinstance(rule, torch.dtype) else rule(name)


def _listed(names: list[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
