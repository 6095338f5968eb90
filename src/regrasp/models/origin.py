"""What a model was made for, kept in its folder: tasks, what it was told there, and the experiment that it is of."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from regrasp.config.parse import parse, read_json

ORIGIN_FILE = "made_for.json"
EXPERIMENT_FILE = "experiment.yaml"
"""The experiment with every value, beside `ORIGIN_FILE`, which has its name."""
_FIX = "restore the file, or delete it: it is only compared with the experiment"


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class Origin:
    """What a model was made for."""

    tasks: tuple[str, ...] = ()
    """By their registered names."""
    instructions: tuple[str, ...] = ()
    """Of the demonstrations of its base model."""
    experiment: str | None = None
    """Name of the experiment that it was made with last; None where that is not known, as of earlier versions."""
    settings: str | None = None
    """That experiment, resolved, as YAML."""

    def trained_on(self, task_id: str) -> Origin:
        """The same after training on a task."""
        return self if task_id in self.tasks else replace(self, tasks=(*self.tasks, task_id))

    def made_with(self, experiment: str, settings: str) -> Origin:
        """The same after training with an experiment, given as YAML."""
        return replace(self, experiment=experiment, settings=settings)

    def save(self, folder: Path) -> None:
        """Write it into a model folder."""
        content = {name: value for name, value in asdict(self).items() if name != "settings" and value is not None}
        (folder / ORIGIN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if self.settings is not None:
            (folder / EXPERIMENT_FILE).write_text(self.settings, encoding="utf-8")


def read_origin(folder: Path) -> Origin:
    """What the model in a folder was made for; nothing where the folder does not say it.

    Raises:
        UserError: The file is damaged.
    """
    file, settings = folder / ORIGIN_FILE, folder / EXPERIMENT_FILE
    origin = parse(Origin, read_json(file, fix=_FIX), file=file, fix=_FIX) if file.exists() else Origin()
    return replace(origin, settings=settings.read_text(encoding="utf-8") if settings.is_file() else None)
