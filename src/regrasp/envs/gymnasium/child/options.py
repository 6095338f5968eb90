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
    tasks: tuple[Mapping[str, Any], ...]
    """Blocks `{instruction, id, kwargs}`; none where `id` is the only task."""
    vector: bool | None
    max_episode_steps: int
    renders: bool
    """Make the environments so that they can be rendered."""
    pixels: tuple[int, int] | None
    """Height and width of what they render, as an observation."""
    expert: str | None
    """`module:function`."""
    action_bounds: str
    """`clip` or `rescale`."""
    success_key: str | None
    success_is_termination: bool
    instruction_key: str | None
    instructions: tuple[str, ...]
