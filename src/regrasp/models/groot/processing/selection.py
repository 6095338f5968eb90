"""Where in the state and in the action vector the keys of a data configuration are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from regrasp.envs.data_config import DataConfig
from regrasp.errors import UserError
from regrasp.models.config import DatasetFacts
from regrasp.models.groot.processing.metadata import Kind
from regrasp.models.inputs import Range
from regrasp.models.normalization import Statistics


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

    State keys are where `state_names` says. Action keys follow one another, each as wide as the state key of its name.

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
    stops = itertools.accumulate(widths[key] for key in names)
    return states, {key: (stop - widths[key], stop) for key, stop in zip(names, stops, strict=True)}
