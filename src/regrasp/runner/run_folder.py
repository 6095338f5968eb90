"""The folder of a run: made, found again, and named in the command that continues it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from regrasp.checkpoint.read import find_checkpoint
from regrasp.checkpoint.run_record import newest_recorded, run_of
from regrasp.errors import SimulatorError, UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import LoadedConfig
from regrasp.folders import COMMAND_FILE, CONFIG_FILE, discard_unused, new_folder, require_writable

_log = logging.getLogger(__name__)


@contextmanager
def open_run_folder(
    loaded: LoadedConfig, given: Sequence[str], run_name: str | None, *, evaluates: bool = False
) -> Iterator[Path]:
    """Create `<log_path>/[eval/]<timestamp>-<task>[_<run_name>]/` and print it first, as RLinf does.

    Configuration and command line are written into it. A command that ends before it wrote more leaves nothing.

    Args:
        loaded: The experiment.
        given: The command line after `regrasp`.
        run_name: Suffix of the folder.
        evaluates: Whether it is an evaluation.

    Raises:
        UserError: The folder cannot be written.
    """
    root = Path(loaded.config.runner.logger.log_path or Path("logs") / "regrasp") / ("eval" if evaluates else "")
    require_writable(root, key="runner.logger.log_path")
    env = loaded.config.env
    task = (env.eval if evaluates else env.train).init_params.id
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-{task}" + (f"_{run_name}" if run_name else "")
    folder = new_folder(root / name)
    _log.info("Logging to: %s", folder.resolve())
    (folder / CONFIG_FILE).write_text(loaded.to_yaml())
    (folder / COMMAND_FILE).write_text(f"{command_line(given)}\n")
    try:
        yield folder
    except (UserError, SimulatorError, KeyboardInterrupt):
        discard_unused(folder)
        raise


def resumed_folder(resume_dir: str) -> Path | None:
    """The folder of the run that has the checkpoint at `resume_dir`, printed first; None for a checkpoint of no run.

    Raises:
        UserError: There is no checkpoint, or the folder cannot be written.
    """
    checkpoint = find_checkpoint(Path(resume_dir))
    folder = run_of(checkpoint)
    if folder is None:
        _log.warning("A new run begins with %s, which is on no run's timeline: copied, or set aside.", checkpoint)
        return None
    require_writable(folder, key="--resume_dir")
    _log.info("Logging to: %s", folder.resolve())
    return folder


def checkpoints_folder(run_dir: Path, config: ExperimentConfig) -> Path:
    """`<run>/<experiment_name>/checkpoints`, as in RLinf."""
    return run_dir / config.runner.logger.experiment_name / "checkpoints"


def newest_checkpoint(run_dir: Path, config: ExperimentConfig) -> Path | None:
    """The newest complete checkpoint of a run; None where there is none."""
    newest = newest_recorded(checkpoints_folder(run_dir, config))
    return newest and newest.resolve()


def command_line(given: Sequence[str]) -> str:
    """The command as the user gave it, quoted for a shell."""
    return shlex.join(["regrasp", *given])


def resume_command(command: Sequence[str], run_dir: Path) -> str:
    """The command that continues a run: the user's own, after `regrasp`, with the run's folder to resume."""
    given, skip = [], False
    for text in command:
        if not (skip or text == "--resume_dir" or text.startswith(("--resume_dir=", "runner.resume_dir="))):
            given.append(text)
        skip = text == "--resume_dir"
    return shlex.join(["regrasp", *given, "--resume_dir", str(run_dir)])
