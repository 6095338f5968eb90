"""What our side tells a process of its environments, as JSON; keys are those of the environment's block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EnvOptions:
    """Settings of one environment. `location` is the dotted key of its block, for errors."""

    location: str
    id: str
    """As registered, or `module:Id`."""
    kwargs: Mapping[str, Any]
    vector: bool | None
    max_episode_steps: int
    renders: bool
    """Make the environments so that they can be rendered."""
    action_bounds: str
    """`clip` or `rescale`."""
    success_key: str | None
    success_is_termination: bool
    instruction_key: str | None
    instructions: tuple[str, ...]
