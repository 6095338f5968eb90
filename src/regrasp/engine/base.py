"""The contract of an engine: where rollout, update and evaluation of a run take place.

Only plain data crosses it, numbers and names, never a policy or a decision, so that an engine may keep each of its
parts in a process of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import Checkpoint
from regrasp.errors import RegraspError
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder


@dataclass(frozen=True)
class Collected:
    """What is told of one update's experience."""

    episodes: list[EpisodeResult]
    """Those that ended."""
    num_decisions: int
    num_steps: int
    """Environment steps executed."""
    seconds: float
    metrics: Mapping[str, float]
    """Of the experience as the algorithm prepared it, such as `advantages_mean`."""
    is_flat: bool
    """Whether no advantage differs from another, so that there is nothing to learn."""
    why_nothing: str
    """Why the algorithm kept no decision; empty where it kept some."""


class UpdateLostError(RegraspError):
    """An update was lost with a process, and can be begun anew."""


class Engine(ABC):
    """A run's policy, optimizer and environments; who started the environments stops them.

    A run calls `collect` and `update` in turn. Where a method is given a function to ask whether to stop, it is asked
    in the process of the caller.
    """

    step_seconds: float
    """Simulated seconds per environment step."""

    @abstractmethod
    def collect(self, update: int, should_stop: Callable[[], bool]) -> Collected:
        """Roll the policy out for update number `update`, and keep the experience.

        Raises:
            InterruptedError: `should_stop` said so; nothing of the rollout is kept.
            LostError: A process failed more than `runner.max_restarts` times without an update in between. What `save`
                then writes is the state before the rollout, or, if the simulators could not give theirs, one from
                which their episodes begin anew.
        """

    @abstractmethod
    def update(self, update: int, should_abandon: Callable[[], bool]) -> dict[str, float]:
        """Train on the experience collected last.

        Raises:
            UpdateLostError: A process was lost. All is again as after the last finished update; collect anew.
            TrainingHaltedError: A loss or gradient is not finite; the weights are those of the last good step.
            AbandonedError: `should_abandon` said so; the weights are those of the last step.
        """

    @abstractmethod
    def evaluate(
        self,
        num_episodes: int,
        on_episode: Callable[[EpisodeResult], None] | None = None,
        recorder: VideoRecorder | None = None,
    ) -> list[EpisodeResult]:
        """Evaluate the policy on episodes 0 to `num_episodes` - 1 of the evaluation stream.

        Raises:
            LostError: See `collect`.
        """

    @abstractmethod
    def save(self, folder: Path, step: int, state: Mapping[str, JSON], *, export: bool) -> None:
        """Fill a checkpoint's folder: weights and optimizer as they are, environments as they were between updates.

        Where a simulator cannot give its state any more, all of theirs are left out, and a warning says so.

        Args:
            folder: Empty; the caller seals it.
            step: Updates made.
            state: The run's own part.
            export: Whether it holds a model folder too.
        """

    @abstractmethod
    def load(self, checkpoint: Checkpoint) -> None:
        """Put weights, optimizer and environments into the state of a checkpoint.

        Raises:
            UserError: The checkpoint is of another policy, or of other environments.
        """
