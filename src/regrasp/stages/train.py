"""Puts a training run together: policy, engine, logger, resumed state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from regrasp.checkpoint.read import Checkpoint, find_checkpoint, read_checkpoint
from regrasp.checkpoint.run_record import RunRecord, only_writer
from regrasp.config.types import changed
from regrasp.engine.base import Engine
from regrasp.engine.memory import check_disk, policy_memory
from regrasp.engine.policies import check_folder_fits
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import LoadedConfig
from regrasp.logging.backends import Opener, TrackedRun, check_installed, prepare_backends
from regrasp.logging.metrics import MetricsLogger
from regrasp.models.contract import Policy
from regrasp.runner.resume import changes_warning, check_slot, passed_over_warning, read_run_state
from regrasp.runner.runner import EmbodiedRunner
from regrasp.stages.engines import started_engine

_log = logging.getLogger(__name__)


def train(loaded: LoadedConfig, run_dir: Path) -> bool:
    """Train in `run_dir`, from the checkpoint `runner.resume_dir` if one is given.

    Returns:
        True when the last update was reached.
    """
    with only_writer(run_dir):
        resumed = loaded.config.runner.resume_dir
        return _train(loaded, run_dir, None if resumed is None else checkpoint_to_resume(Path(resumed)))


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
    policy = check_folder_fits(config, "train")
    if config.runner.val_check_interval > 0:
        check_folder_fits(config, "eval")
    return policy


def _train(loaded: LoadedConfig, run_dir: Path, checkpoint: Checkpoint | None) -> bool:
    config = loaded.config
    policy = check(config)
    backends = prepare_backends(config.runner.logger.logger_backends)
    if policy is not None and (warning := check_disk(config, policy_memory(policy, config), run_dir)):
        _log.warning(warning)
    with started_engine(config, run_dir, None if checkpoint is None else checkpoint.path) as engine:
        return _run(loaded, engine, run_dir, checkpoint, backends)


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
    checkpoint: Checkpoint | None,
    backends: Mapping[str, Opener],
) -> bool:
    names = loaded.config.runner.logger
    text = _settings(loaded)
    if checkpoint is not None:
        before = read_run_state(checkpoint).settings or text
        check_slot(before, loaded.config, checkpoint.path)
        if warning := changes_warning(before, text):
            _log.warning(warning)
        engine.load(checkpoint)
    tracking_id = RunRecord(run_dir).tracking_id(None if checkpoint is None else checkpoint.step)
    run = TrackedRun(run_dir, names.project_name, names.experiment_name, tracking_id, text)
    with MetricsLogger(run, backends) as logger:
        runner = EmbodiedRunner(loaded.config, engine, logger, run_dir, text)
        if checkpoint is not None:
            runner.resume(checkpoint)
        return runner.run()


def _settings(loaded: LoadedConfig) -> str:
    """The resolved configuration without `resume_dir`: a resumed run is the same experiment."""
    return changed(loaded, "config.runner.resume_dir", None).to_yaml()
