"""Assemble a trocar from a tray, with two hands; the embedded twin of Isaac Lab's assemble-trocar task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from regrasp.envs.mujoco.task import Camera, GroundingScene, Task, TaskOutcome
from regrasp.envs.mujoco.tasks.trocar import stages
from regrasp.envs.mujoco.tasks.trocar.memory import SIZE, memory_of
from regrasp.envs.mujoco.tasks.trocar.options import TrocarOptions
from regrasp.envs.mujoco.tasks.trocar.robot import (
    ACTION_JOINTS,
    ACTION_OFFSETS,
    ARM_JOINTS,
    BODY_JOINTS,
    HAND_JOINTS,
)
from regrasp.envs.mujoco.tasks.trocar.scene import OBJECTS, Layout, build_model, lying

if TYPE_CHECKING:
    from regrasp.envs.mujoco.tasks.trocar.expert import Expert

TIMESTEP = 0.0025
"""Half the reference's: at 5 ms the grip holds only within a narrow range of squeeze."""
CONTROL_SECONDS = 0.02
SQUEEZE = 0.85
"""How far the expert's holding hands are commanded to close, of their whole way."""
NUM_EVAL_ANGLES = 11
_IMAGE_SIZE = 224


class AssembleTrocar(Task):
    """Lift both objects, bring their tips together, insert the rod into the tube, put the assembly down.

    Actions are the absolute positions of 43 joints in radians, in the order of `ACTION_JOINTS`. Reward is 1 for each
    stage that is reached. The episode ends with the last stage, and is truncated when an object falls off the table.
    """

    options_type = TrocarOptions
    instructions = ("assemble trocar from tray",)
    max_episode_steps = 256
    action_dim = len(ACTION_JOINTS)
    episode_size = SIZE
    cameras = tuple(
        Camera(name, _IMAGE_SIZE, _IMAGE_SIZE) for name in ("front_camera", "left_wrist_camera", "right_wrist_camera")
    )
    vectors: Mapping[str, int] = {
        "robot_joint_state": 3 * len(BODY_JOINTS),
        "robot_dex3_joint_state": len(HAND_JOINTS),
    }
    video_camera = "overview"
    info = ("stage", "lifted", "tips_met", "inserted", "placed", "truly_inserted")

    def __init__(self, options: TrocarOptions, *, timestep: float = TIMESTEP, squeeze: float = SQUEEZE) -> None:
        self.model = build_model(timestep)
        self.physics_steps = round(CONTROL_SECONDS / timestep)
        self._options = options
        self._squeeze = squeeze
        self._layout = Layout(self.model)
        self._controls = [self.model.actuator(name).id for name in ACTION_JOINTS]
        self._body = [self.model.joint(name).qposadr[0] for name in BODY_JOINTS]
        self._body_velocity = [self.model.joint(name).dofadr[0] for name in BODY_JOINTS]
        self._hands = [self.model.joint(name).qposadr[0] for name in HAND_JOINTS]
        self._arms = [self.model.joint(name).qposadr[0] for name in ARM_JOINTS]

    @cached_property
    def _expert(self) -> Expert:
        from regrasp.envs.mujoco.tasks.trocar.expert import Expert

        return Expert(self.model, self._layout, self._squeeze)

    def reset(self, data: mujoco.MjData, episode: np.ndarray, rng: np.random.Generator) -> int:
        """Turn tray and objects, jitter the objects, put the robot in its recorded pose."""
        mujoco.mj_resetData(self.model, data)
        yaw = np.radians(self._draw_yaw(rng))
        jitter = self._options.object_jitter * rng.uniform(-1.0, 1.0, (2, 2))
        self._layout.arrange(data, yaw, self._shift, jitter)
        episode[:] = 0
        mujoco.mj_forward(self.model, data)
        return 0

    def _draw_yaw(self, rng: np.random.Generator) -> float:
        """Degrees by which tray and objects are turned."""
        return rng.uniform(*self._options.yaw_degrees)

    @property
    def _shift(self) -> np.ndarray:
        return np.array([self._options.shift_x, 0.0])

    def actuate(self, data: mujoco.MjData, episode: np.ndarray, action: np.ndarray) -> None:
        """Give the joints their targets."""
        data.ctrl[self._controls] = action + ACTION_OFFSETS
        memory_of(episode)["clock"] += 1

    def observe(self, data: mujoco.MjData, episode: np.ndarray) -> Mapping[str, np.ndarray]:
        """Positions, velocities and torques of the body's joints, then positions of the hands'."""
        body = [data.qpos[self._body], data.qvel[self._body_velocity], data.qfrc_actuator[self._body_velocity]]
        return {"robot_joint_state": np.concatenate(body), "robot_dex3_joint_state": data.qpos[self._hands]}

    def outcome(self, data: mujoco.MjData, episode: np.ndarray) -> TaskOutcome:
        """Advance the stage machine; a fall truncates, as in the reference."""
        memory, poses = memory_of(episode), self._layout.poses(data)
        before = int(memory["stage"])
        stage = stages.advance(before, stages.reached(poses))
        memory["stage"] = stage
        memory["depth"] = max(memory["depth"], stages.insertion_depth(poses))
        reward = float(stage - before)
        if self._options.dense_reward:
            reward = stages.dense_reward(before, stage, poses, memory["locked"], CONTROL_SECONDS)
        done = stage == stages.NUM_STAGES
        reached = [float(stage > index) for index in range(stages.NUM_STAGES)]
        measures = [float(stage), *reached, float(memory["depth"] >= stages.TRUE_DEPTH)]
        info = dict(zip(self.info, measures, strict=True))
        return TaskOutcome(reward, done, done, info, truncated=stages.dropped(poses))

    def expert(self, data: mujoco.MjData, episode: np.ndarray) -> np.ndarray:
        """The scripted expert's joint positions.

        Raises:
            UserError: The inverse kinematics are not installed; names the extra.
        """
        return self._expert(data, memory_of(episode))

    def check_expert(self) -> None:
        """Import the inverse kinematics.

        Raises:
            UserError: They are not installed; names the extra.
        """
        assert self._expert

    def scatter(self, data: mujoco.MjData, rng: np.random.Generator) -> GroundingScene:
        """A random scene: objects anywhere on the tray or, at times, held up; arms near their start."""
        mujoco.mj_resetData(self.model, data)
        jitter = rng.uniform([-0.05, -0.04], [0.03, 0.10], (2, 2))
        self._layout.arrange(data, np.radians(rng.uniform(-5.0, 15.0)), self._shift, jitter)
        data.qpos[self._arms] += rng.normal(0.0, 0.15, len(self._arms))
        for index in range(len(OBJECTS)):
            if rng.random() < 0.3:
                position = rng.uniform([-1.65, 1.70, 0.88], [-1.42, 2.05, 1.08])
                self._layout.place(data, index, position, lying(rng.normal(0.0, 0.1)))
        mujoco.mj_forward(self.model, data)
        return GroundingScene(self.instructions, self._layout.poses(data).centres[None])


class AssembleTrocarEval(AssembleTrocar):
    """The task of evaluation: the angle is one of 11 evenly spaced ones, which the episode's seed chooses.

    The reference gives each environment its own angle. Here an episode must not depend on the environment that
    runs it, and evaluation's seeds are fixed: each evaluation episode has its own angle, the same every time.
    """

    def _draw_yaw(self, rng: np.random.Generator) -> float:
        return float(np.linspace(*self._options.yaw_degrees, NUM_EVAL_ANGLES)[rng.integers(NUM_EVAL_ANGLES)])
