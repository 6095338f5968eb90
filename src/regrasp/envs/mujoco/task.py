"""What a MuJoCo task defines: a model, a start, actuation, observations, success, and a scripted expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import mujoco
import numpy as np


@dataclass(frozen=True)
class TaskOutcome:
    """What one step of one environment led to."""

    reward: float
    terminated: bool
    success: bool
    info: Mapping[str, float] = field(default_factory=dict)
    truncated: bool = False
    """The task gave the episode up, which is no verdict on its final state."""


@dataclass(frozen=True)
class Camera:
    """A camera of the model that observations can use."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class GroundingScene:
    """Where the objects that an instruction names are, in one rendered scene."""

    instructions: tuple[str, ...]
    positions: np.ndarray
    """(I, S, 3) metres: for each instruction the up to S objects that it names, in the order of their mention.

    Slots past the objects that an instruction names are NaN.
    """
    robot: np.ndarray = field(default_factory=lambda: np.empty(0))
    """(D,) metres: what the robot's own sensors would say, for models that learn it from images alone."""


class Task(ABC):
    """One task. An episode's own variables live in a flat float64 vector, so that they can be saved with the physics.

    Attributes, of the class or set when it is created, state the sizes; `model` is shared by all environments of a
    process.
    """

    options_type: ClassVar[type | None] = None
    """A checked dataclass of the task's options (`init_params.task_options`), with which it is created; None: none."""
    task_id: str = ""
    """The id by which it was asked for, set by whoever creates it."""
    instructions: tuple[str, ...]
    max_episode_steps: int
    action_dim: int
    physics_steps: int
    """Physics steps per control step."""
    episode_size: int
    """Length of the episode vector."""
    cameras: tuple[Camera, ...]
    vectors: Mapping[str, int]
    """Vector observations of group `policy`: key to width."""
    video_camera: str
    info: tuple[str, ...] = ()
    """Further measures, which `outcome` gives."""
    grippers: tuple[int, ...] = ()
    """Dimensions of the action that open and close a gripper: demonstrations have no noise on them."""
    model: mujoco.MjModel

    @property
    def has_expert(self) -> bool:
        """Whether the class defines `expert`."""
        return type(self).expert is not Task.expert

    @property
    def has_scenes(self) -> bool:
        """Whether the class defines `scatter`."""
        return type(self).scatter is not Task.scatter

    @property
    def step_seconds(self) -> float:
        """Simulated seconds per control step."""
        return self.physics_steps * self.model.opt.timestep

    @abstractmethod
    def reset(self, data: mujoco.MjData, episode: np.ndarray, rng: np.random.Generator) -> int:
        """Arrange a start in `data` and `episode`, and return the index of the instruction."""

    @abstractmethod
    def actuate(self, data: mujoco.MjData, episode: np.ndarray, action: np.ndarray) -> None:
        """Turn one action (A,) into control signals."""

    @abstractmethod
    def observe(self, data: mujoco.MjData, episode: np.ndarray) -> Mapping[str, np.ndarray]:
        """The vector observations."""

    @abstractmethod
    def outcome(self, data: mujoco.MjData, episode: np.ndarray) -> TaskOutcome:
        """Reward, end and success after a control step."""

    def expert(self, data: mujoco.MjData, episode: np.ndarray) -> np.ndarray:
        """The scripted expert's action (A,); a task without an expert leaves this out."""
        raise NotImplementedError

    def check_expert(self) -> None:  # noqa: B027
        """Raise a `UserError` where the expert needs a package that is not installed."""

    def scatter(self, data: mujoco.MjData, rng: np.random.Generator) -> GroundingScene:
        """Arrange a random scene for grounding pretraining and say what is where; needed for `pretrain.tasks` only."""
        raise NotImplementedError
