"""Options of the trocar task, `env.{train,eval}.init_params.task_options`. Does not import MuJoCo."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Expect


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if not -20 <= bounds[0] <= bounds[1] <= 20:
        raise ValueError("not -20 <= low <= high <= 20")
    return bounds


@dataclass(frozen=True, config=BLOCK)
class TrocarOptions:
    """How an episode starts and what is paid."""

    yaw_degrees: Annotated[
        tuple[float, float],
        Field(strict=False),
        AfterValidator(_ascending),
        Expect("[low, high] with -20 <= low <= high <= 20"),
    ] = (0.0, 10.0)
    """Range of the angle by which tray and objects are turned about the tray's centre."""
    object_jitter: Annotated[float, Field(ge=0, le=0.03), Expect("metres from 0 to 0.03")] = 0.02
    """Each object is moved by up to this many metres along x and along y, on its own."""
    shift_x: Annotated[float, Field(ge=-0.02, le=0.1), Expect("metres from -0.02 to 0.1")] = 0.05
    """Tray and objects stand this many metres farther from the robot than in the reference."""
    dense_reward: bool = False
    """Pay progress within a stage at every step, instead of 1 for each stage that is reached."""
