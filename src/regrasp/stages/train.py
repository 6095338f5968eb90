"""Puts a training run together: policy, engine, logger, resumed state."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from regrasp.checkpoint.read import Checkpoint, find_checkpoint, read_checkpoint
from regrasp.checkpoint.run_record import RunRecord, only_writer
from regrasp.config.types import changed
from regrasp.engine.base import Engine
from regrasp.engine.memory import check_disk, policy_memory
from regrasp.engine.policies import check_folder_fits, warn_of_another_task
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.batches import num_updates
from regrasp.experiment.load import LoadedConfig
from regrasp.experiment.paths import MissingInputError
from regrasp.logging.backends import Opener, TrackedRun, check_installed, prepare_backends
from regrasp.logging.metrics import MetricsLogger
from regrasp.logging.warning_file import WarningFile, recorded_warnings
from regrasp.models.contract import Policy
from regrasp.runner.resume import changes_warning, check_slot, passed_over_warning, read_run_state
from regrasp.runner.runner import EmbodiedRunner
from regrasp.stages.engines import started_engine
from regrasp.stages.replayed_demonstrations import find_demonstrations

_log = logging.getLogger(__name__)


def train(loaded: LoadedConfig, run_dir: Path, command: str = "", begins: Callable[[], object] | None = None) -> bool:
    """Train in `run_dir`, from the checkpoint `runner.resume_dir` if one is given.

    Args:
        loaded: The experiment.
        run_dir: Folder of the run.
        command: The command line, for the run's record; empty for a call from Python.
        begins: Called once nothing is found that the run is refused for.

    Returns:
        True when the last update was reached; False when a signal came before.

    Raises:
        UserError: The experiment does not fit the machine, the model or the checkpoint.
        SimulatorError: A simulator failed; the updates before it are saved.
        TrainingHaltedError: The run stopped itself; the updates before it are saved.
    """
    with only_writer(run_dir):
        resumed = loaded.config.runner.resume_dir
        checkpoint = None if resumed is None else checkpoint_to_resume(Path(resumed))
        if checkpoint is not None and checkpoint.step >= num_updates(loaded.config):
            _say_finished(loaded.config, checkpoint, is_own=RunRecord(run_dir).holds(checkpoint.path))
            return True
        with recorded_warnings(run_dir, loaded.warnings) as warnings:
            return _train(loaded, run_dir, command, checkpoint, warnings, begins)


def _say_finished(config: ExperimentConfig, checkpoint: Checkpoint, *, is_own: bool) -> None:
    """Tell that a checkpoint to go on from has all the updates that are asked for.

    Raises:
        UserError: It is not of this run, or has no model folder, so that there is nothing to show.
    """
    key = "runner.max_steps" if num_updates(config) < config.runner.max_epochs else "runner.max_epochs"
    further = f"{key} above {checkpoint.step}" + (" (--max_iterations)" if key == "runner.max_epochs" else "")
    if checkpoint.export is None or not is_own:
        raise UserError(
            "The checkpoint to go on from has as many updates already",
            file=checkpoint.path,
            key=key,
            value=num_updates(config),
            expected=f"more than {checkpoint.step}",
            fix=f"resume with {further}",
        )
    _log.info(
        "This run is finished: %s has %d of %d updates. Nothing is done. To go further, resume with %s.",
        checkpoint.path,
        checkpoint.step,
        num_updates(config),
        further,
    )


def check_resume(loaded: LoadedConfig, resume_dir: Path, run_dir: Path | None) -> None:
    """Tell, before anything starts, what a training tells of the checkpoint that it goes on from.

    Args:
        loaded: The experiment.
        resume_dir: Where the checkpoint is.
        run_dir: Folder of the run that goes on; None for a new one.

    Raises:
        UserError: There is none, it is damaged or of another embodiment, or has all the updates that are asked for.
    """
    checkpoint = checkpoint_to_resume(resume_dir)
    if checkpoint.step >= num_updates(loaded.config):
        _say_finished(loaded.config, checkpoint, is_own=run_dir is not None)
    else:
        _tell_changes(loaded.config, checkpoint, _settings(loaded))


def _tell_changes(config: ExperimentConfig, checkpoint: Checkpoint, settings: str) -> None:
    """Warn of what differs from the settings that a checkpoint was written with.

    Raises:
        UserError: The embodiment does.
    """
    before = read_run_state(checkpoint).settings or settings
    check_slot(before, config, checkpoint.path)
    if warning := changes_warning(before, settings):
        _log.warning(warning)


def check(config: ExperimentConfig) -> Policy | None:
    """Find, before a simulator starts, what a training would be refused for.

    Returns:
        The policy that it starts from, without the memory of its weights, where there is one.

    Raises:
        UserError: A package is missing, or the model folder and the environments do not fit.
    """
    if config.runner.ckpt_path is not None:
        raise UserError(
            "A training does not begin with weights over its model",
            key="runner.ckpt_path",
            value=config.runner.ckpt_path,
            expected="null, or an evaluation (--only_eval, regrasp play)",
            fix="make a model folder of both with `regrasp export --rl_model_path`, and give it as --model_path",
        )
    check_installed(config.runner.logger.logger_backends)
    if config.algorithm.demonstrations is not None:
        find_demonstrations(config, Path(config.algorithm.demonstrations).expanduser())
    policy = check_folder_fits(config, "train")
    warn_of_another_task(config, "train")
    if config.runner.val_check_interval > 0:
        check_folder_fits(config, "eval")
    if (storage := config.algorithm.storage_path) is not None and not os.access(storage, os.W_OK | os.X_OK):
        raise MissingInputError(
            "Stored experience has no folder for its files",
            key="algorithm.replay_buffer.storage_path",
            value=storage,
            expected="a folder that exists and can be written, on a disk with room",
            fix="make it, or name another one",
        )
    return policy


def _train(
    loaded: LoadedConfig,
    run_dir: Path,
    command: str,
    checkpoint: Checkpoint | None,
    warnings: WarningFile,
    begins: Callable[[], object] | None,
) -> bool:
    config = loaded.config
    policy = check(config)
    backends = prepare_backends(config.runner.logger.logger_backends)
    if policy is not None and (warning := check_disk(config, policy_memory(policy, config), run_dir)):
        _log.warning(warning)
    if begins is not None:
        begins()
    try:
        with started_engine(config, run_dir, None if checkpoint is None else checkpoint.path) as engine:
            return _run(loaded, engine, run_dir, command, checkpoint, backends, warnings)
    except InterruptedError:
        return False


def checkpoint_to_resume(path: Path) -> Checkpoint:
    """Find, verify and open the checkpoint that a path means.

    Raises:
        UserError: There is none, or it is damaged.
    """
    folder = find_checkpoint(path)
    if warning := passed_over_warning(path, folder):
        _log.warning(warning)
    return read_checkpoint(folder)


def _run(
    loaded: LoadedConfig,
    engine: Engine,
    run_dir: Path,
    command: str,
    checkpoint: Checkpoint | None,
    backends: Mapping[str, Opener],
    warnings: WarningFile,
) -> bool:
    names = loaded.config.runner.logger
    text = _settings(loaded)
    if checkpoint is not None:
        _tell_changes(loaded.config, checkpoint, text)
        engine.load(checkpoint)
    record, step = RunRecord(run_dir), None if checkpoint is None else checkpoint.step
    record.begin(step or 0, command, text)
    warnings.begin()
    tracking_id = record.tracking_id(step)
    run = TrackedRun(run_dir, names.project_name, names.experiment_name, tracking_id, text)
    with MetricsLogger(run, backends) as logger:
        runner = EmbodiedRunner(loaded.config, engine, logger, run_dir, text)
        if checkpoint is None:
            logger.truncate_after(-1)  # a run that was killed before its first checkpoint begins again in its folder
        else:
            runner.resume(checkpoint)
        return runner.run()


def _settings(loaded: LoadedConfig) -> str:
    """The resolved configuration without `resume_dir`: a resumed run is the same experiment."""
    return changed(loaded, "config.runner.resume_dir", None).to_yaml()
