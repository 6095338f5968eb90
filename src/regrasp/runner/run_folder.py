"""The folder of a run: made, found again, and named in the command that continues it."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from regrasp.checkpoint.layout import step_of
from regrasp.checkpoint.read import find_checkpoint
from regrasp.checkpoint.run_record import RunRecord, newest_recorded, run_of
from regrasp.checkpoint.verify import is_complete
from regrasp.config.types import is_folder_name
from regrasp.errors import SimulatorError, UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import LoadedConfig
from regrasp.folders import discard_unused, new_folder, require_writable
from regrasp.logging.metrics import METRICS_FILE, read_metrics

_log = logging.getLogger(__name__)


@contextmanager
def open_run_folder(
    loaded: LoadedConfig, given: Sequence[str], run_name: str | None, *, evaluates: bool = False
) -> Iterator[Path]:
    """Create `<log_path>/[eval/]<timestamp>-<task>[_<run_name>]/`, whose name `tell_folder` prints.

    Configuration and command line are written into it. A command that ends before it wrote more leaves nothing.

    Args:
        loaded: The experiment.
        given: The command line after `regrasp`.
        run_name: Suffix of the folder.
        evaluates: Whether it is an evaluation.

    Raises:
        UserError: The folder cannot be written.
    """
    root = log_folder(loaded.config) / ("eval" if evaluates else "")
    require_writable(root, key="runner.logger.log_path")
    env = loaded.config.env
    task = (env.eval if evaluates else env.train).init_params.id
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-{_task_part(task)}" + (f"_{run_name}" if run_name else "")
    if not is_folder_name(name):
        raise UserError(
            "This cannot be a part of the run's folder's name",
            key="--run_name",
            value=run_name,
            expected="text without / and, with the task's name, of at most 200 bytes",
            fix="choose a shorter one, without /",
        )
    made = [place for place in (root, *root.parents) if not place.exists()]
    folder = new_folder(root / name)
    try:
        RunRecord(folder).begin(0, command_line(given), loaded.to_yaml())
        yield folder
    except (UserError, SimulatorError, KeyboardInterrupt):
        discard_unused(folder, made)
        raise


def tell_folder(folder: Path) -> None:
    """Print where a run writes, as RLinf does; once it is known that it is not refused."""
    _log.info("Logging to: %s", folder.resolve())


def recorded_resume_command(run_dir: Path) -> str | None:
    """The command that continues a run as it was last begun; None where that was no `regrasp train`."""
    starts = RunRecord(run_dir.absolute()).starts
    command = shlex.split(starts[-1].command) if starts else []
    return resume_command(command[1:], run_dir) if command[:2] == ["regrasp", "train"] else None


def _task_part(task_id: str) -> str:
    """A task's id in the name of a folder: it may have a namespace, `name/Task-v0`, or be a place, `module:Task`."""
    return task_id.replace("/", "-").replace(":", ".")[:100]


def log_folder(config: ExperimentConfig) -> Path:
    """The folder of all runs."""
    return Path(config.runner.logger.log_path or Path("logs") / "regrasp")


def resumed_folder(resume_dir: str) -> Path | None:
    """The folder of the run that has the checkpoint at `resume_dir`; None for a checkpoint of no run.

    Raises:
        UserError: There is no checkpoint, or the folder cannot be written.
    """
    checkpoint = find_checkpoint(Path(resume_dir))
    folder = run_of(checkpoint)
    if folder is None:
        _log.warning("A new run begins with %s, which is on no run's timeline: copied, or set aside.", checkpoint)
        return None
    require_writable(folder, key="--resume_dir")
    return folder


def checkpoints_folder(run_dir: Path, config: ExperimentConfig) -> Path:
    """`<run>/<experiment_name>/checkpoints`, as in RLinf."""
    return run_dir / config.runner.logger.experiment_name / "checkpoints"


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run; None where there is none."""
    return next(filter(is_complete, RunRecord(run_dir.absolute()).checkpoints()), None)


def newest_of_run(path: Path, *, tells: bool = True) -> Path:
    """The newest checkpoint, which is told, where a path is the folder of a run; otherwise the path itself."""
    checkpoint = newest_recorded(path) if path.is_dir() else None
    if checkpoint is None:
        return path
    if tells and checkpoint != path.absolute():
        _log.info("The newest checkpoint of %s: %s", path, checkpoint)
    return checkpoint


def checkpoint_of_task(config: ExperimentConfig, *, best: bool) -> Path:
    """The newest checkpoint of the runs of an experiment's task, or that whose evaluation was the best.

    Args:
        config: Its `runner.logger.log_path` has the runs, whose folders end with the task's name.
        best: Choose by `eval/success_once`, of a task without success by `eval/return`, the newer one of equals.

    Raises:
        UserError: There is none.
    """
    root, task = log_folder(config), config.env.train.init_params.id
    name = re.compile(rf"\d{{8}}-\d{{6}}-{re.escape(_task_part(task))}([_.].*)?")
    runs = sorted((folder for folder in root.glob("*") if name.fullmatch(folder.name)), reverse=True)
    if best:
        scores = {step: score for run in runs for step, score in _evaluated_checkpoints(run)}
        found = sorted(scores, key=lambda step: -scores[step])
    else:
        found = [step for run in runs if (step := newest_checkpoint(run)) is not None]
    if not found:
        evaluated = ", with evaluations at its checkpoints (runner.val_check_interval, runner.save_interval)"
        raise UserError(
            f"There is no {'evaluated ' if best else ''}checkpoint of a run of this task",
            key="--checkpoint",
            value="best" if best else "latest",
            expected=f"a run of {task} in {root.resolve()}{evaluated if best else ''}",
            fix="give the path of a global_step_<N> folder",
        )
    _log.info("Checkpoint: %s", found[0].resolve())
    return found[0]


def _evaluated_checkpoints(run_dir: Path) -> Iterator[tuple[Path, float]]:
    """The complete checkpoints of a run that were evaluated, newest first, and their success, or else their return."""
    file = run_dir / METRICS_FILE
    lines = read_metrics(file) if file.is_file() else []
    scores: dict[int, float] = {}
    for name in ("eval/return", "eval/success_once"):
        scores |= {line["step"]: line[name] for line in lines if name in line}
    for folder in RunRecord(run_dir).checkpoints():
        score = scores.get(step_of(folder) or 0)
        if score is not None and is_complete(folder):
            yield folder, score


def command_line(given: Sequence[str]) -> str:
    """The command as the user gave it, quoted for a shell."""
    return shlex.join(["regrasp", *given])


def resume_command(command: Sequence[str], run_dir: Path) -> str:
    """The command that continues a run: the user's own, after `regrasp`, with the run's folder to resume."""
    given, skip = [], False
    flags = ("--resume_dir", "--checkpoint", "--run_name")
    named = (*(f"{flag}=" for flag in flags), "runner.resume_dir=")
    for text in command:
        if not (skip or text in flags or text.startswith(named)):
            given.append(text)
        skip = text in flags
    return shlex.join(["regrasp", *given, "--resume_dir", str(run_dir.absolute())])
