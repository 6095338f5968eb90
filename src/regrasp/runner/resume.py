"""What a resumed run takes over from its checkpoint before it writes anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from regrasp.checkpoint.layout import STATE, step_folders
from regrasp.checkpoint.read import Checkpoint
from regrasp.checkpoint.verify import resuming_problems
from regrasp.config.parse import parse
from regrasp.config.types import NonNegativeInt
from regrasp.errors import UserError, spelled
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.inputs import input_names
from regrasp.experiment.load import own_keys
from regrasp.runner.guards import Signal

_NUM_CHANGES_SHOWN = 5
_TAKE_ANOTHER = "take another checkpoint, or copy this one again from its source"
_ABSENT = "not there"


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class RunState:
    """What a checkpoint keeps of the run beside its engine's state."""

    env_steps: NonNegativeInt
    settings: str | None = None
    """The resolved configuration, as YAML."""
    guard: Signal = dataclasses.field(default_factory=Signal)


def read_run_state(checkpoint: Checkpoint) -> RunState:
    """How far the run was.

    Raises:
        UserError: A value is missing or of the wrong kind.
    """
    return parse(RunState, checkpoint.state, file=checkpoint.path / STATE, key="state", fix=_TAKE_ANOTHER)


def check_slot(before: str, config: ExperimentConfig, file: Path) -> None:
    """Check that a resumed run of a published model trains the projectors that it began with.

    Args:
        before: The configuration that the run began with, as YAML.
        config: The present one. A model folder that knows its own slot has been compared with it already.
        file: The checkpoint, for errors.

    Raises:
        UserError: Another embodiment, or another slot, is named.
    """
    key, inputs = "env.train.mapping.embodiment_tag_id", input_names(config.env.train.mapping)
    try:
        block = yaml.safe_load(before)["env"]["train"]["mapping"]
        trained = {name: block[name] for name in ("embodiment_tag", "embodiment_tag_id")}
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"The configuration that the checkpoint keeps is damaged: {error}",
            file=file / STATE,
            key="state.settings",
            fix=_TAKE_ANOTHER,
        ) from error
    now, then = (
        config.actor.model.trained_embodiment(names, key) for names in (inputs, dataclasses.replace(inputs, **trained))
    )
    if now is None or then is None:
        return
    if now != then:
        raise UserError(
            "The run was begun with the projectors of another embodiment",
            file=file,
            key=key,
            value=f"{now[0]} in slot {now[1]}",
            expected=f"{then[0]} in slot {then[1]}",
            fix="resume with the embodiment that the run was begun with, or begin a new run",
        )


def passed_over_warning(asked: Path, taken: Path) -> str | None:
    """Which newer checkpoints `find_checkpoint` passed over, and why; None where there are none.

    Args:
        asked: The path given by the user; where it names a checkpoint itself, none is passed over.
        taken: The checkpoint that it was found to mean.
    """
    asked, taken = asked.resolve(), taken.resolve()
    if asked == taken:
        return None
    newer = takewhile(lambda folder: folder != taken, step_folders(taken.parent))
    found = [(folder, resuming_problems(folder, contents=False)) for folder in newer]
    if not found:
        return None
    reasons = [f"{folder} ({problems[0] if problems else 'not of this timeline'})" for folder, problems in found]
    return f"Passed over: {', '.join(reasons)}. The run goes on from {taken} instead."


def changes_warning(before: str, now: str) -> str | None:
    """What to warn of where a run goes on with another configuration, given as YAML; None where nothing differs."""
    changes = changes_between(before, now)
    text = "The configuration differs from the one that the checkpoint was written with: "
    return f"{text}{changes}." if changes else None


def changes_between(before: str, now: str) -> str:
    """What differs between two configurations, given as YAML, key by key; empty where nothing does."""
    if before == now:
        return ""
    old, new = (dict(_leaves(own_keys(yaml.safe_load(text)), "")) for text in (before, now))
    changed = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    shown = "; ".join(
        f"{key} was {old.get(key, _ABSENT)} and is {new.get(key, _ABSENT)}" for key in changed[:_NUM_CHANGES_SHOWN]
    )
    more = f"; and {len(changed) - _NUM_CHANGES_SHOWN} more" if len(changed) > _NUM_CHANGES_SHOWN else ""
    return f"{shown}{more}"


def _leaves(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """The values of a nested block by dotted key, as YAML spells them."""
    if not isinstance(node, dict):
        yield key, spelled(node)
        return
    for name, child in node.items():
        yield from _leaves(child, f"{key}.{name}" if key else str(name))
