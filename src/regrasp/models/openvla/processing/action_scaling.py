"""Which statistics actions are normalised by, and how."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regrasp.errors import UserError
from regrasp.models.normalization import Statistics

STATISTICS_FILE = "dataset_statistics.json"
"""Of a fine-tune's data, beside its config.json."""
UNNORM_KEY = "actor.model.unnorm_key"
Bounds = Literal["q99", "min_max"]
_EPS = 1e-8


class ActionScaling:
    """Physical actions (..., A) to [-1, 1] and back, where a mask says so; the others stay as they are.

    OpenVLA's arithmetic (`prismatic/vla/datasets/rlds/utils/data_utils.py`, `predict_action`): [q01, q99] becomes
    [-1, 1], and what lies outside is clipped.

    Args:
        low: (A,), what becomes -1.
        high: (A,), what becomes 1.
        mask: (A,) bool.
    """

    def __init__(self, low: Tensor, high: Tensor, mask: Tensor) -> None:
        self.width = len(low)
        self._low = torch.where(mask, low, -1.0)
        self._range = torch.where(mask, high - low, 2.0)
        self._mask = mask

    def normalize(self, values: Tensor) -> Tensor:
        """Physical units to [-1, 1], float32; what is not masked is not clipped here."""
        low, extent, mask = self._on(values)
        scaled = (2 * (values.float() - low) / (extent + _EPS) - 1).clamp(-1, 1)
        return torch.where(mask, scaled, values.float())

    def unnormalize(self, values: Tensor) -> Tensor:
        """[-1, 1] to physical units, float32."""
        low, extent, mask = self._on(values)
        return torch.where(mask, 0.5 * (values.float() + 1) * extent + low, values.float())

    def _on(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._low.device != values.device:
            self._low, self._range, self._mask = (
                tensor.to(values.device) for tensor in (self._low, self._range, self._mask)
            )
        return self._low, self._range, self._mask


def known_statistics(content: Mapping[str, Any], fine_tuned: Mapping[str, Any] | None, file: Path) -> dict[str, Any]:
    """The statistics of a folder by `unnorm_key`: `norm_stats` of config.json, and those of a fine-tune.

    Raises:
        UserError: `norm_stats` is no object.
    """
    stats = content.get("norm_stats") or {}
    if not isinstance(stats, Mapping):
        raise UserError("Not an object", file=file, key="norm_stats", value=stats, expected="{...}")
    return {**stats, **(fine_tuned or {})}


def choose_key(stats: Mapping[str, Any], asked: str | None, file: Path) -> str:
    """The entry whose statistics an experiment's actions have.

    Args:
        stats: By key.
        asked: `actor.model.unnorm_key`; None: the only one. `<key>_no_noops`, as RLinf has it, is found too.
        file: Where they stand, for errors.

    Raises:
        UserError: The key is not there, or there are several and none is asked for.
    """
    if asked is None and len(stats) == 1:
        return next(iter(stats))
    for name in (asked, f"{asked}_no_noops"):
        if asked is not None and name in stats:
            return str(name)
    raise UserError(
        "The model has no statistics of this name"
        if asked is not None
        else f"The model has statistics of {len(stats)} data sets, and which one the actions are of is not said",
        file=file,
        key=UNNORM_KEY,
        value=asked,
        expected=f"one of {', '.join(sorted(stats))}"
        if stats
        else f"statistics under norm_stats of config.json, or in {STATISTICS_FILE}",
        fix=f"set {UNNORM_KEY}"
        if stats
        else f"put the fine-tune's {STATISTICS_FILE} into the folder; for a robot that the model has not seen, train a"
        " base model first (`regrasp sft`)",
    )


def read_scaling(stats: Mapping[str, Any], key: str, bounds: Bounds, file: Path) -> ActionScaling:
    """The scaling that an entry describes.

    Raises:
        UserError: It has no action, or lists of different lengths.
    """
    entry = stats[key]
    action = entry.get("action") if isinstance(entry, Mapping) else None
    names = ("q01", "q99") if bounds == "q99" else ("min", "max")
    rows: list[Sequence[float]] = []
    for name in names:
        row: Any = action.get(name) if isinstance(action, Mapping) else None
        is_list = isinstance(row, Sequence) and len(row) > 0 and all(type(value) in (int, float) for value in row)
        if not is_list or (rows and len(row) != len(rows[0])):
            raise UserError(
                "Not a list of numbers",
                file=file,
                key=f"norm_stats.{key}.action.{name}",
                value=row,
                expected=f"lists of as many numbers: {', '.join(names)}",
            )
        rows.append(row)
    low, high = (torch.tensor(row, dtype=torch.float32) for row in rows)
    mask: Any = action.get("mask") if isinstance(action, Mapping) else None
    if mask is None:
        mask = [True] * len(low)
    if not isinstance(mask, Sequence) or len(mask) != len(low) or any(type(value) is not bool for value in mask):
        raise UserError(
            "Not a list of true and false",
            file=file,
            key=f"norm_stats.{key}.action.mask",
            value=mask,
            expected=f"{len(low)} of them, one for each action dimension",
        )
    if not (low.isfinite() & high.isfinite()).all():
        raise UserError("Statistics that are not finite", file=file, key=f"norm_stats.{key}.action", value=rows)
    return ActionScaling(low, high, torch.tensor(mask))


def entry_of(action: Statistics, proprio: Statistics) -> dict[str, Any]:
    """Statistics of demonstrations in the layout of `norm_stats`; every action dimension is normalised."""
    entry = {"action": action.to_mapping(), "proprio": proprio.to_mapping()}
    entry["action"]["mask"] = [True] * action.width  # pyright: ignore[reportArgumentType]
    return copy.deepcopy(entry)
