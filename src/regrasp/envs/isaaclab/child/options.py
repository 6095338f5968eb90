"""What our side tells Isaac Sim's process about the task, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TaskOptions:
    """Settings of one task. `location` is the dotted key of the environment's block, for errors."""

    location: str
    task_id: str
    max_episode_steps: int
    ignore_terminations: bool
    seed: int
    """Under which the environment is built; its episodes have seeds of their own."""
    device: str
    headless: bool
    cameras: bool
    """Render camera sensors."""
    camera_size: tuple[int, int] | None
    """(height, width) of every camera of the task; None keeps the task's."""
    presets: tuple[str, ...]
    """Isaac Lab 3.x configuration presets, such as `physics=newton_mjwarp`."""
    hold_action: str
    """`last` or `zero`."""
    observation_names: tuple[str, ...]
    """The names that the mapping uses, to see which groups it wants whole."""
    video_camera: str | None
    reward_source: str
    """`task` or `success`."""
    success_term: str | None
    zero_weight_terms: tuple[str, ...]
    instruction_key: str | None
    instructions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The options as plain JSON types."""
        return asdict(self)


def options_from_json(data: Mapping[str, Any]) -> TaskOptions:
    """The inverse of `TaskOptions.to_json`."""
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in data.items()}
    return TaskOptions(**values)
