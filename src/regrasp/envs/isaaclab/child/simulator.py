"""A vectorised Isaac Lab environment as a `Simulator`."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from regrasp.envs.isaaclab.child import launch, observations, signals
from regrasp.envs.isaaclab.child.episodes import Episodes
from regrasp.envs.isaaclab.child.options import TaskOptions
from regrasp.envs.process.simulator import Outcome, Simulator, SimulatorSpec
from regrasp.envs.selection import find_observation
from regrasp.errors import UserError


class IsaacLabSimulator(Simulator):
    """N environments of one task that step together on the simulator's device.

    Args:
        episodes: The environment, with resets under our control.
        options: The task's settings.
        close: Releases the application.

    Raises:
        UserError: A name in the options is not one of the task's.
    """

    def __init__(self, episodes: Episodes, options: TaskOptions, close: Callable[[], None]) -> None:
        env = episodes.env
        self._torch = importlib.import_module("torch")
        self._episodes = episodes
        self._options = options
        self._close = close
        self._num_envs = int(env.num_envs)
        self._action_dim = _action_dim(env, options)
        self._success = signals.success_signal(env, options)
        signals.check_reward_source(env, options)
        signals.call_zero_weight_terms(env, options)
        self._succeeded = np.zeros(self._num_envs, bool)
        rows = range(self._num_envs)
        self._observation = episodes.reset(rows, [options.seed + 2 * row for row in rows])
        self._instruction_key = self._find_instruction_key()
        camera = options.main_images
        location = f"{options.location}.mapping.main_images"
        self._video = find_observation(camera, self._observation, location) if camera else None

    def describe(self) -> SimulatorSpec:
        """What the task offers, as it is and not as its spaces say: Isaac Lab declares images as float."""
        env = self._episodes.env
        return SimulatorSpec(
            task_id=self._options.id,
            raw_observations=observations.describe(self._observation),
            action_dim=self._action_dim,
            instructions=self._options.instructions or ("",),
            step_seconds=float(env.step_dt),
            max_episode_steps=self._options.max_episode_steps,
            state_size=0,
            hold_last_action=self._options.hold_action == "last",
            capabilities={"seed_per_env": False},
            quaternions=launch.quaternion_order(),
            notes=self._notes(),
            reward_doubts=tuple(f"reward term '{name}' has weight 0, so it is never called" for name in self._uncalled),
        )

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Sequence[int]:
        """Start an episode in each row and return the indices of their instructions."""
        self._observation = self._episodes.reset(rows, seeds)
        self._succeeded[list(rows)] = False
        if self._instruction_key is None:
            return [0] * len(rows)
        chosen = self._observation[self._instruction_key].reshape(self._num_envs, -1)[:, 0].cpu().numpy()[list(rows)]
        count = len(self._options.instructions)
        for row, index in zip(rows, chosen, strict=True):
            if not 0 <= index < count:
                raise UserError(
                    f"The task chose an instruction that is not there: '{self._instruction_key}' is {index} in"
                    f" environment {row}",
                    key=f"{self._options.location}.mapping.instructions",
                    value=list(self._options.instructions),
                    expected=f"an instruction for every number that the task gives; these are 0 to {count - 1}",
                    fix="add the missing instructions, in the task's order, or choose another instruction_key",
                )
        return chosen.tolist()

    def advance(self, actions: np.ndarray, running: np.ndarray) -> Outcome:
        """Execute one action (N, A) in every environment, those that do not run included."""
        result = self._episodes.step(self._torch.from_numpy(actions).to(self._episodes.env.device))
        self._observation = result.observation
        success = np.zeros(self._num_envs, bool) if self._success is None else self._success().cpu().numpy()
        rewards = result.rewards.to("cpu", self._torch.float32).numpy()
        if self._options.reward_source == "success":
            rewards = (success & ~self._succeeded).astype(np.float32)
        self._succeeded |= success
        return Outcome(
            rewards=rewards,
            terminated=result.terminated.cpu().numpy(),
            truncated=result.truncated.cpu().numpy(),
            success=success,
        )

    def observe(self, rows: Sequence[int], targets: Mapping[str, np.ndarray]) -> None:
        """Write the present observations of `rows` into arrays (N, ...)."""
        for key, target in targets.items():
            observations.copy_rows(self._observation[key], rows, target)

    def render(self, rows: Sequence[int], targets: Sequence[np.ndarray]) -> None:
        """Write the main camera's images of `rows`, scaled by the nearest pixel."""
        assert self._video is not None, "the settings of a recorded task name a camera"
        images = self._observation[self._video][list(rows)].cpu().numpy()
        for image, target in zip(images, targets, strict=True):
            vertical, horizontal = (
                np.arange(size) * available // size
                for size, available in zip(target.shape[:2], image.shape[:2], strict=True)
            )
            target[:] = image[vertical[:, None], horizontal]

    def close(self) -> None:
        """Close the environment, then the application; either may hang, so our side has a deadline."""
        self._episodes.env.close()
        self._close()

    def _find_instruction_key(self) -> str | None:
        name, location = self._options.instruction_key, f"{self._options.location}.mapping.instruction_key"
        if name is None:
            return None
        key = find_observation(name, self._observation, location)
        dtype = observations.dtype_name(self._observation[key])
        if "int" not in dtype:
            raise UserError(
                "The observation that chooses the instruction is no whole number",
                key=location,
                value=f"{name} ({dtype})",
                expected="an integer observation of one value per environment",
                fix="choose another observation, or have the task give the index as int64",
            )
        return key

    @property
    def _uncalled(self) -> list[str]:
        skipped = signals.zero_weight_terms(self._episodes.env)
        return [name for name in skipped if name not in self._options.call_zero_weight_terms]

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self._uncalled:
            notes.append(
                f"Isaac Lab never calls the reward terms of weight 0: {', '.join(self._uncalled)}. If one of them keeps"
                " the task's state, name it in call_zero_weight_terms."
            )
        if self._success is None:
            notes.append(
                "The task does not tell its success, so no episode counts as one; name a termination in success_term."
            )
        return tuple(notes)


def _action_dim(env: Any, options: TaskOptions) -> int:
    space = getattr(env, "single_action_space", None)
    shape = getattr(space, "shape", None)
    if not shape or "float" not in str(getattr(space, "dtype", None)):
        raise UserError(
            "The task's actions are not one continuous vector",
            key=f"{options.location}.init_params.id",
            value=f"{options.id}: {space}",
            expected="a Box action space",
            fix="choose a task with joint or end-effector actions",
        )
    return math.prod(shape)
