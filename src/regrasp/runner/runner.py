"""The training loop: collect, check, update, check, evaluate, log, save."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regrasp.checkpoint.layout import step_folder
from regrasp.checkpoint.plain import JSON
from regrasp.checkpoint.read import Checkpoint
from regrasp.checkpoint.run_record import RunRecord
from regrasp.checkpoint.write import new_checkpoint, prune
from regrasp.engine.base import Collected, Engine, UpdateLostError
from regrasp.errors import LostError, TrainingHaltedError, UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_optimizer_steps, num_updates
from regrasp.folders import new_folder
from regrasp.learner.learner import AbandonedError
from regrasp.logging.console import ConsoleTable
from regrasp.logging.metrics import ENV_STEPS, STEPS_PER_SECOND, MetricsLogger
from regrasp.logging.progress import progress
from regrasp.logging.text import counted
from regrasp.rollout.episodes import EpisodeResult
from regrasp.rollout.evaluation import VideoRecorder
from regrasp.runner.guards import SignalGuard
from regrasp.runner.interrupt import StopRequest
from regrasp.runner.resume import read_run_state
from regrasp.runner.run_folder import checkpoints_folder
from regrasp.runner.summary import episode_metrics
from regrasp.runner.videos import EVALUATIONS_FOLDER, NUM_VIDEOS, EpisodeVideos

_log = logging.getLogger(__name__)

_FINISH_SECONDS = 20.0
"""After a request to stop, an update that ends within this time is kept."""


@dataclass
class Progress:
    """How far a run is."""

    update: int = 0
    env_steps: int = 0


@dataclass
class EmbodiedRunner:
    """Trains a policy until the last update, a signal, or a halt.

    Args:
        config: The experiment.
        engine: Started.
        logger: Metrics of the run.
        run_dir: Folder of the run.
        config_text: The resolved configuration, which checkpoints keep.
        progress: How far the run is.
    """

    config: ExperimentConfig
    engine: Engine
    logger: MetricsLogger
    run_dir: Path
    config_text: str
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._guard = SignalGuard(
            force=self.config.runner.force,
            num_steps=0 if self.config.algorithm.stores_experience else num_optimizer_steps(self.config),
            noise_key=self.config.actor.model.noise_key,
            on_policy=not self.config.runner.max_staleness,
        )
        self._table = ConsoleTable(num_updates(self.config), self.config.algorithm.shown)
        self._guard_before: dict[str, Any] | None = None
        """What the guard had seen when the update began that is not finished."""
        self._saved_update: int | None = None
        self._save_failed = False
        self._record = RunRecord(self.run_dir)

    def run(self) -> bool:
        """Train; returns True when the last update was reached and False when a signal ended the run before."""
        runner = self.config.runner
        with StopRequest() as stop:
            if runner.val_before_train and runner.val_check_interval > 0 and not self.progress.update:
                self._log_base(stop)
            while not (self._finished or stop.requested):
                try:
                    metrics = self._update(stop)
                except UpdateLostError as error:
                    _log.warning(error)
                    assert self._guard_before is not None
                    self._guard.load_state_dict(self._guard_before)
                    if stop.requested:
                        self._save()
                    continue
                except InterruptedError:
                    return False
                except AbandonedError as error:
                    _log.warning(error)
                    return False
                if self._due(runner.val_check_interval):
                    metrics |= self._evaluate_or_save(metrics, stop)
                self._log(metrics)
                if self._finished or stop.requested:
                    self._save()
                elif self._due(runner.save_interval) or self._save_failed:
                    self._save_or_later()
        return self._finished

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue after the update that `checkpoint` was written at, with an engine that was restored from it."""
        state = read_run_state(checkpoint)
        self._guard.load_state_dict(asdict(state.guard))
        self.progress = Progress(checkpoint.step, state.env_steps)
        self._saved_update = checkpoint.step
        num_logged = self._go_back_to(checkpoint.step) if self._record.holds(checkpoint.path) else 0
        again = f"; {counted(num_logged, 'update')} logged after it {'is' if num_logged == 1 else 'are'} run again"
        _log.info("Going on from update %d (%s)%s.", checkpoint.step, checkpoint.path, again if num_logged else "")

    def _go_back_to(self, step: int) -> int:
        """Take up the run's timeline at `step`: what is of later steps is set aside, where a crash has not lost it.

        Returns:
            The number of later updates that had been logged.
        """
        later = self._record.end_at(step)
        aside = new_folder(later[0].parent / f"set_aside_after_step_{step}") if later else None
        num_logged = self.logger.truncate_after(step, aside)
        if aside is not None:
            for folder in later:
                folder.rename(aside / folder.name)
            names = ", ".join(folder.name for folder in reversed(later))
            _log.warning("The run goes back to update %d. Kept in %s: %s and later metrics.", step, aside, names)
        return num_logged

    def _update(self, stop: StopRequest) -> dict[str, float]:
        started = time.monotonic()
        self._guard_before = self._guard.state_dict()
        with self._saved_on(Exception):
            collected = self.engine.collect(self.progress.update, lambda: stop.requested)
            self._guard.after_rollout(collected.episodes, is_flat=collected.is_flat, why_nothing=collected.why_nothing)
        trained = time.monotonic()
        with self._saved_on(AbandonedError, LostError, TrainingHaltedError):
            metrics = self.engine.update(self.progress.update, lambda: stop.overdue(_FINISH_SECONDS))
        self._guard_before = None
        self.progress.update += 1
        self.progress.env_steps += collected.num_steps
        with self._saved_on(TrainingHaltedError):
            self._guard.after_update(metrics)
        finished = time.monotonic()
        return {
            **{f"train/{name}": value for name, value in metrics.items()},
            **_rollout_metrics(collected),
            ENV_STEPS: float(self.progress.env_steps),
            "time/generate_rollouts": collected.seconds,
            "time/actor_training": finished - trained,
            "time/step": finished - started,
            STEPS_PER_SECOND: collected.num_steps / (finished - started),
        }

    @contextlib.contextmanager
    def _saved_on(self, *errors: type[Exception]) -> Iterator[None]:
        """Save the last finished update where one of `errors` ends the run."""
        try:
            yield
        except errors:
            self._save()
            raise

    def _log_base(self, stop: StopRequest) -> None:
        """Evaluate the policy that training starts from, as update 0; a signal before the end leaves it out."""
        if metrics := self._evaluate(stop):
            self._log({**metrics, ENV_STEPS: 0.0})

    def _evaluate_or_save(self, metrics: dict[str, float], stop: StopRequest) -> dict[str, float]:
        """Evaluation metrics; where the evaluation fails, the update before it is logged and saved."""
        try:
            return self._evaluate(stop)
        except Exception:
            self._log(metrics)
            self._save()
            raise

    def _evaluate(self, stop: StopRequest) -> dict[str, float]:
        """Evaluation metrics; none when a signal comes before they are complete."""
        started = time.monotonic()
        num_episodes = self.config.env.eval.num_episodes * self.config.algorithm.eval_rollout_epoch

        def count(_: EpisodeResult) -> None:
            if stop.requested:
                raise InterruptedError
            bar.advance()

        try:
            with progress("Evaluating", num_episodes) as bar:
                episodes = self.engine.evaluate(num_episodes, count, self._recorder())
        except InterruptedError:
            return {}
        return {**episode_metrics(episodes, "eval"), "time/eval": time.monotonic() - started}

    def _recorder(self) -> VideoRecorder | None:
        """Where the first episodes of this evaluation are recorded, if they are."""
        video = self.config.env.eval.video_cfg
        if not video.save_video:
            return None
        part = f"{EVALUATIONS_FOLDER}/global_step_{self.progress.update}"
        videos = EpisodeVideos(self.run_dir, video, self.engine.step_seconds, "finetuned", part)
        return VideoRecorder(NUM_VIDEOS, videos.write)

    @property
    def _finished(self) -> bool:
        return self.progress.update >= num_updates(self.config)

    def _due(self, interval: int) -> bool:
        """Whether what happens every `interval` updates and at the last one happens now; -1 and 0 are never."""
        return interval > 0 and (self._finished or self.progress.update % interval == 0)

    def _log(self, metrics: dict[str, float]) -> None:
        self.logger.log(self.progress.update, metrics)
        self._table.row(self.progress.update, metrics)

    def _save_or_later(self) -> None:
        """Save; where the disk refuses, the run goes on, and the next update is saved instead."""
        try:
            self._save()
            self._save_failed = False
        except UserError as error:
            if not self._save_failed:
                _log.warning(
                    "Update %d was not saved; after every further one it is tried again. %s",
                    self.progress.update,
                    error,
                )
            self._save_failed = True

    def _save(self) -> None:
        """Write the checkpoint of the last finished update, unless there is one.

        Where the update after it broke off, its weights are those of the last good step.
        """
        if self._saved_update == self.progress.update:
            return
        runner = self.config.runner
        state: dict[str, JSON] = {
            "env_steps": self.progress.env_steps,
            "settings": self.config_text,
            "guard": self._guard.state_dict() if self._guard_before is None else self._guard_before,
        }
        export, step = runner.export_model == "always" or self._finished, self.progress.update
        folder = checkpoints_folder(self.run_dir, self.config)
        self._record.add(step_folder(folder, step))
        new_checkpoint(folder, step, lambda draft: self.engine.save(draft, step, state, export=export))
        self._saved_update = step
        prune(self._record.checkpoints(), runner.keep_checkpoints)


def _rollout_metrics(collected: Collected) -> dict[str, float]:
    return {
        **episode_metrics(collected.episodes, "env"),
        **{f"rollout/{name}": value for name, value in collected.metrics.items()},
        "rollout/decisions": float(collected.num_decisions),
    }
