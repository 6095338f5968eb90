"""Which experiment a command is about: the one that is named, else that of the run or the model it is given."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from regrasp.checkpoint.layout import EXPORT
from regrasp.config.search import settled
from regrasp.errors import UserError

_log = logging.getLogger(__name__)

DEFAULT_CONFIG = "pick_cube_sac_groot"
MODEL_KEY = "actor.model.model_path"


@dataclass(frozen=True)
class Experiment:
    """What was chosen."""

    name: str
    """As `--config_name` takes it: a name, or the path of a YAML file."""
    of: str | None = None
    """The run or the model that keeps it, in words; None where it is no such file."""
    silent_model: Path | None = None
    """A model that is given and does not say which experiment it was made with, so that the default one is taken."""

    def tell(self, *, rehearses: bool) -> None:
        """Say which experiment is taken, where that was not the user's word; a dry run's summary says it anyway."""
        if self.of is not None and not rehearses:
            _log.info("Experiment: %s, of %s", self.name, self.of)
        if self.silent_model is not None:
            text = "%s does not say which experiment it was made with: %s is taken. Another is named by --config_name."
            _log.warning(text, self.silent_model, self.name)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Have the errors of a kept experiment say how to use another one."""
        try:
            yield
        except UserError as error:
            places = (self.name, str(settled(Path(self.name))))
            if self.of is None or not (error.file or "").startswith(places):
                raise
            advice = f"this is the experiment of {self.of}; another one is named by --config_name"
            fields = error.fields() | {"fix": f"{error.fix}; {advice}" if error.fix else advice}
            raise type(error)(**fields) from None


def find_model(args: argparse.Namespace) -> None:
    """Where a run's folder, or a checkpoint, is given as the model, put its newest model in its place."""
    given = getattr(args, "model_path", None)
    if given is not None:
        args.model_path = str(model_of_run(Path(given), tells=not args.dry_run))
    args.overrides = [
        text if (given := _named_by(text)) is None else f"{MODEL_KEY}={model_of_run(Path(given), tells=False)}"
        for text in args.overrides
    ]


def fetch_model(args: argparse.Namespace) -> None:
    """Where a model is named as the Hugging Face hub has it, put its folder in its place.

    Raises:
        UserError: The hub does not have it, does not give it, or cannot be reached.
    """
    from regrasp.hub import fetch

    given = getattr(args, "model_path", None)
    if given is not None:
        folder = fetch(str(given), "model", key="--model_path", downloads=not args.dry_run)
        args.model_path = given if folder is None else str(folder)


def model_of_run(path: Path, *, tells: bool = True) -> Path:
    """The newest model of a run, which is told, where a path is a run's folder or a checkpoint; else the path."""
    from regrasp.models.config import CONFIG_FILE
    from regrasp.runner.run_folder import newest_of_run

    folder = path.expanduser()
    if not folder.is_dir() or (folder / CONFIG_FILE).exists():
        return path
    model = newest_of_run(folder, tells=tells) / EXPORT
    return model if model.is_dir() else path


def choose_experiment(args: argparse.Namespace) -> Experiment:
    """The experiment that a command asks for.

    In this order: that of `--config_name`; of a run that is resumed, its own; of a model, the one that it was made
    with, if `--task` names none of another simulator; the one of the task; the default.

    Raises:
        UserError: The task has an experiment that cannot be found, or none and the default one does not suit it.
    """
    if getattr(args, "config_name", None):
        return Experiment(args.config_name)
    resumed = getattr(args, "resume_dir", None)
    kept = None if resumed is None else _of_run(Path(resumed).expanduser())
    model = _model_folder(args)
    if kept is None and model is not None:
        kept = _of_model(model, args.task)
    if kept is not None:
        return kept
    of_task = _experiment_of_task(args)
    return Experiment(DEFAULT_CONFIG, silent_model=model) if of_task is None else Experiment(of_task)


def _of_run(path: Path) -> Experiment | None:
    """The experiment of the run that a folder is, or whose checkpoint it is; None where there is none."""
    from regrasp.checkpoint.read import find_checkpoint
    from regrasp.checkpoint.run_record import run_of
    from regrasp.folders import CONFIG_FILE

    try:
        run = run_of(find_checkpoint(path))
    except UserError:  # what is wrong with it is said when it is read
        return None
    file = None if run is None else run / CONFIG_FILE
    return Experiment(str(file), f"the run {run}") if file is not None and file.is_file() else None


def _model_folder(args: argparse.Namespace) -> Path | None:
    """The folder that is given as the model, if it is one."""
    from regrasp.models.config import CONFIG_FILE

    named = [given for text in args.overrides if (given := _named_by(text)) is not None]
    given = named[-1] if named else getattr(args, "model_path", None)
    folder = None if given is None else Path(given).expanduser()
    return folder if folder is not None and (folder / CONFIG_FILE).is_file() else None


def _named_by(override: str) -> str | None:
    """The model's folder that an override names; None for other overrides."""
    key, equals, value = override.partition("=")
    return value if equals and key == MODEL_KEY else None


def _of_model(folder: Path, task: str | None) -> Experiment | None:
    """The experiment that a model's folder keeps; None where it keeps none, or the task is of another simulator."""
    from regrasp.envs.registry import EnvTypes
    from regrasp.models.origin import EXPERIMENT_FILE

    file = folder / EXPERIMENT_FILE
    if not file.is_file():
        return None
    experiment = Experiment(str(file), f"the model {folder}")
    owner = None if task is None else EnvTypes().of_task(task)
    if owner is None:
        return experiment
    try:
        own = yaml.safe_load(file.read_text(encoding="utf-8"))["env"]["train"]["env_type"]
    except (yaml.YAMLError, KeyError, TypeError):
        return experiment  # which then says what is wrong with it
    return experiment if own == owner else None


def _experiment_of_task(args: argparse.Namespace) -> str | None:
    """The experiment of the task of `--task`: the one that it names when it is registered, or one that comes with us.

    Raises:
        UserError: None is known, and the default one is for another robot.
    """
    from regrasp.envs.registry import EnvTypes
    from regrasp.experiment.shipped import experiments_of_tasks

    if args.task is None:
        return None
    known = EnvTypes()
    named = (env_type.experiment_of_task(args.task, args.overrides) for env_type in known.values())
    file = next((file for file in named if file is not None), None)
    if file is not None:
        return str(file)
    owner, experiments = known.of_task(args.task), experiments_of_tasks()
    if owner is None:
        return next(iter(experiments.get(args.task, ())), None)
    advice = known[owner].without_experiment
    if advice is None:
        return None
    shipped = next((experiments[name] for name in known[owner].namesakes(args.task) if name in experiments), None)
    if shipped is None:
        expected, fix = advice
        raise UserError(
            "No experiment is known for this task", key="--task", value=args.task, expected=expected, fix=fix
        )
    return shipped[0]
