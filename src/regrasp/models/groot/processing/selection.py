"""From the experiment's order of cameras and states to the order of a data configuration."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from regrasp.errors import UserError
from regrasp.models.groot.processing.data_config import DataConfig
from regrasp.models.groot.processing.metadata import Metadata
from regrasp.models.inputs import InputNames, Range
from regrasp.models.normalization import Statistics


class Selection:
    """Which cameras and which columns of the state vector a model sees, in its order.

    Args:
        data: The model's order.
        metadata: Widths of the state keys.
        inputs: The experiment's names; None leaves cameras, or states, as they come.

    Raises:
        UserError: A camera or a state key is missing, or a slice is not as wide as its key.
    """

    def __init__(self, data: DataConfig, metadata: Metadata, inputs: InputNames) -> None:
        widths = {item.key: metadata.width("state", item.key) for item in data.state}
        self.state_dim = sum(widths.values())
        self._views = None if inputs.views is None else _permutation(data.video, inputs.views)
        self._columns = None
        if inputs.state is not None:
            slices = {key: (start, stop) for key, start, stop in inputs.state}
            _check_slices(widths, slices, metadata)
            columns = list(chain.from_iterable(range(*slices[key]) for key in widths))
            self.state_dim = max(stop for _, stop in slices.values())
            self._columns = None if columns == list(range(self.state_dim)) else torch.tensor(columns)

    def views(self, views: Tensor) -> Tensor:
        """(B, V, ...) in the model's order of cameras."""
        if self._views is None or self._views == sorted(self._views):
            return views
        return views[:, self._views]

    def state(self, states: Tensor) -> Tensor:
        """(B, state_dim) to the model's (B, D)."""
        return states if self._columns is None else states[:, self._columns.to(states.device)]


def split_statistics(
    data: DataConfig, inputs: InputNames, state: Statistics, action: Statistics
) -> tuple[dict[str, Statistics], dict[str, Statistics]]:
    """Statistics of whole vectors, by the keys of a data configuration; see `key_ranges`.

    Raises:
        UserError: A width is not known, or the widths do not add up.
    """
    states, actions = key_ranges(data, inputs, state.width, action.width)
    return (
        {key: state.columns(*bounds) for key, bounds in states.items()},
        {key: action.columns(*bounds) for key, bounds in actions.items()},
    )


def key_ranges(
    data: DataConfig, inputs: InputNames, state_width: int, action_width: int
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Where in the state and in the action vector the keys of a data configuration are.

    State keys are where `inputs.state` says. Action keys follow one another, each as wide as the state key of its name.

    Raises:
        UserError: A width is not known, or the widths do not add up.
    """
    first, *further = [item.key for item in data.state]
    if inputs.state is None and further:
        raise UserError(
            "Where the parts of the state are is not said",
            key="mapping.gr00t_mapping.state",
            value=None,
            expected=f"the ranges of {', '.join([first, *further])}",
            mend="add gr00t_mapping to the mapping",
        )
    states = {first: (0, state_width)} if inputs.state is None else {}
    states |= {key: (start, stop) for key, start, stop in inputs.state or ()}
    names = [item.key for item in data.action]
    widths = {key: states[key][1] - states[key][0] for key in names if key in states}
    if len(names) == 1:
        widths = {names[0]: action_width}
    if len(widths) < len(names) or sum(widths.values()) != action_width:
        raise UserError(
            "How wide the parts of the action are cannot be told",
            key="mapping.data_config.action",
            value=", ".join(f"{key}: {widths.get(key, '?')}" for key in names),
            expected=f"one key, or keys of the state (mapping.gr00t_mapping.state) of {action_width} values together",
        )
    actions, start = {}, 0
    for key in names:
        actions[key] = (start, start + widths[key])
        start += widths[key]
    return states, actions


def _permutation(model: tuple[str, ...], experiment: tuple[str, ...]) -> list[int]:
    """For each camera of the model, where the experiment has it."""
    if sorted(model) != sorted(experiment):
        raise UserError(
            "The experiment's cameras are not the model's",
            key="mapping.gr00t_mapping.video",
            value=", ".join(experiment),
            expected=", ".join(model),
            mend="name main_images and each of extra_view_images as the model calls it",
        )
    return [experiment.index(name) for name in model]


def _check_slices(widths: dict[str, int], slices: dict[str, tuple[int, int]], metadata: Metadata) -> None:
    wrong = [
        f"{key} {list(slices[key])} ({slices[key][1] - slices[key][0]} wide)" if key in slices else f"{key} missing"
        for key, width in widths.items()
        if key not in slices or slices[key][1] - slices[key][0] != width
    ]
    if wrong:
        raise UserError(
            "Slices of the state do not match the metadata",
            file=metadata.file,
            key="mapping.gr00t_mapping.state",
            value="; ".join(wrong),
            expected=", ".join(f"{key} {width} wide" for key, width in widths.items()) + f" ({metadata.tag})",
            mend="give in gr00t_mapping.state each key its range of the concatenated `states`",
        )
