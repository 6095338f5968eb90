"""Where in the state and in the action vector the keys of a data configuration are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from torch import Tensor

from regrasp.envs.data_config import DataConfig
from regrasp.errors import UserError
from regrasp.models.config import DatasetFacts
from regrasp.models.groot.processing.metadata import Kind
from regrasp.models.inputs import Range
from regrasp.models.normalization import Normalizer, Statistics


def split_statistics(data: DataConfig, facts: DatasetFacts) -> dict[Kind, dict[str, Statistics]]:
    """Statistics of whole vectors, by the keys of a data configuration; see `key_ranges`.

    Raises:
        UserError: A width is not known, or the widths do not add up.
    """
    states, actions = key_ranges(data, facts.state_names, facts.state.width, facts.action.width)
    return {
        "state": {key: facts.state.columns(*bounds) for key, bounds in states.items()},
        "action": {key: facts.action.columns(*bounds) for key, bounds in actions.items()},
    }


def key_ranges(
    data: DataConfig, state_names: Mapping[str, Range], state_width: int, action_width: int
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Where in the state and in the action vector the keys of a data configuration are.

    State keys are where `state_names` says. Action keys follow one another, each as wide as it says or as the state key
    of its name; one of which neither is known has the rest.

    Raises:
        UserError: A width is not known, or the widths do not add up.
    """
    first, *further = [item.key for item in data.state]
    if not state_names and further:
        raise UserError(
            "Where the parts of the state are is not said",
            key="mapping.gr00t_mapping.state",
            value=None,
            expected=f"the ranges of {', '.join([first, *further])}",
            fix="add gr00t_mapping to the mapping",
        )
    states = dict(state_names) or {first: (0, state_width)}
    names = [item.key for item in data.action]
    widths = {key: states[key][1] - states[key][0] for key in names if key in states and len(names) > 1}
    widths |= {item.key: item.width for item in data.action if item.width is not None}
    unknown = [key for key in names if key not in widths]
    if len(unknown) == 1 and sum(widths.values()) < action_width:
        widths[unknown[0]] = action_width - sum(widths.values())
    if len(widths) < len(names) or sum(widths.values()) != action_width:
        raise UserError(
            "How wide the parts of the action are cannot be told",
            key="mapping.data_config.action",
            value=", ".join(f"{key}: {widths.get(key, '?')}" for key in names),
            expected=f"one key, or keys of {action_width} values together, with a width or that of the state key of"
            " their name (mapping.gr00t_mapping.state)",
            fix="give each key its width: {key: ..., width: ...}",
        )
    stops = itertools.accumulate(widths[key] for key in names)
    return states, {key: (stop - widths[key], stop) for key, stop in zip(names, stops, strict=True)}


def check_ways_back(data: DataConfig, state_names: Mapping[str, Range], actions: Tensor, source: str) -> None:
    """Check that every part of the actions survives being normalised and turned back.

    `q99` may cut what lies outside [q01, q99]. A part with a rotation is left out: it has several
    numbers for one rotation.

    Raises:
        UserError: A part does not.
    """
    names = [item.key for item in data.action]
    if len(names) > 1 and not state_names:
        return  # `key_ranges` says so, where the ranges are needed
    _, ranges = key_ranges(
        data, state_names, max((stop for _, stop in state_names.values()), default=0), actions.shape[1]
    )
    for item in data.action:
        if item.rotation is not None:
            continue
        values = actions[:, slice(*ranges[item.key])]
        statistics = Statistics.of(values)
        scaling = Normalizer(statistics, item.mode)
        tolerance = 1e-3 * (values.amax(0) - values.amin(0)) + 1e-5 * values.abs().amax(0).clamp(min=1)
        lost = (scaling.unnormalize(scaling.normalize(values)) - values).abs() > tolerance
        if item.mode == "q99":  # it cuts what lies outside; where [q01, q99] is one value, that is all that moves
            low, high = statistics.q01, statistics.q99
            lost &= ((low <= values) & (values <= high)) | (low == high)
        if lost.any():
            examples = values[lost].unique()[:4].tolist()
            raise UserError(
                f"{source} have actions that the normalisation does not give back",
                key=f"mapping.data_config.action ({item.key}, mode {item.mode})",
                value=", ".join(f"{value:g}" for value in examples),
                expected="0 and 1 only" if item.mode == "binary" else "values that vary over [q01, q99]",
                fix="have action_mapping turn them into 0 and 1 (-1 and 1 become so by scale: 2, offset: -1), or give"
                " the key the mode min_max"
                if item.mode == "binary"
                else "give the key the mode min_max",
            )
