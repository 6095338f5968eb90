"""What a model was made for, kept in its folder: the tasks that it was trained on, and what it was told there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from regrasp.config.parse import parse, read_json

ORIGIN_FILE = "made_for.json"
_FIX = "restore the file, or delete it: it is only compared with the experiment"


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class Origin:
    """What a model was made for."""

    tasks: tuple[str, ...] = ()
    """By their registered names."""
    instructions: tuple[str, ...] = ()
    """Of the demonstrations of its base model."""

    def trained_on(self, task_id: str) -> Origin:
        """The same after training on a task."""
        return self if task_id in self.tasks else replace(self, tasks=(*self.tasks, task_id))

    def save(self, folder: Path) -> None:
        """Write it into a model folder."""
        (folder / ORIGIN_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin:
    """What the model in a folder was made for; nothing where the folder does not say it.

    Raises:
        UserError: The file is damaged.
    """
    file = folder / ORIGIN_FILE
    return parse(Origin, read_json(file, fix=_FIX), file=file, fix=_FIX) if file.exists() else Origin()
