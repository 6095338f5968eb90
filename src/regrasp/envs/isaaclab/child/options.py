"""What our side tells Isaac Sim's process about the task, as JSON; keys are those of the environment's block."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskOptions:
    """Settings of one task. `location` is the dotted key of the environment's block, for errors."""

    location: str
    id: str
    """Task, by its registered name."""
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
    main_images: str | None
    """Name of the camera that is recorded."""
    reward_source: str
    """`task` or `success`."""
    success_term: str | None
    call_zero_weight_terms: tuple[str, ...]
    instruction_key: str | None
    instructions: tuple[str, ...]
