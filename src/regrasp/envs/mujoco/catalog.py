"""Which MuJoCo tasks there are. Importable without MuJoCo, so that listing them is instant."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from regrasp.errors import UserError
from regrasp.extras import entry_points, load_named

if TYPE_CHECKING:
    from regrasp.envs.mujoco.task import Task

ENTRY_POINT_GROUP = "regrasp.tasks"
"""Tasks of other packages: names of entry points are ids, what they name are classes that extend `Task`."""
TASK_IDS: dict[str, str] = {
    "Regrasp-Pick-Cube-v0": "regrasp.envs.mujoco.tasks.pick_cube:PickCube",
    "Regrasp-Stack-Cube-v0": "regrasp.envs.mujoco.tasks.stack_cube:StackCube",
    "Regrasp-Assemble-Trocar-G129-Dex3-v0": "regrasp.envs.mujoco.tasks.trocar.task:AssembleTrocar",
    "Regrasp-Assemble-Trocar-G129-Dex3-Eval-v0": "regrasp.envs.mujoco.tasks.trocar.task:AssembleTrocarEval",
}
"""The tasks that come with Regrasp: id to `module:Class`."""


@dataclass(frozen=True)
class KnownTask:
    """Where a task is."""

    task_id: str
    place: str
    """`module:Class`."""
    package: str | None = None
    """The installed package that brings it, with its version; None for a task of Regrasp, or one named by its place."""


def known_tasks() -> Iterator[KnownTask]:
    """Those of Regrasp, then those that installed packages add."""
    yield from (KnownTask(task_id, place) for task_id, place in TASK_IDS.items())
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        yield KnownTask(entry.name, entry.value.replace(" ", ""), _package(entry))


def is_place(task_id: str) -> bool:
    """Whether a task is named by its class, `my_package.my_module:MyTask`; ids of Gymnasium have other signs too."""
    module, colon, name = task_id.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def find_task(task_id: str, key: str) -> KnownTask:
    """The task of an id, or of a place.

    Args:
        task_id: Either.
        key: Where it is given, for errors.

    Raises:
        UserError: It is unknown, or two packages bring a task of this name.
    """
    found = [task for task in known_tasks() if task.task_id == task_id]
    if len(found) > 1:
        raise UserError(
            f"Several tasks are called {task_id}",
            key=key,
            value=task_id,
            expected=" or ".join(f"{task.place} ({task.package or 'regrasp'})" for task in found),
            fix="name the class itself, module:Class",
        )
    if found:
        return found[0]
    if is_place(task_id):
        return KnownTask(task_id, task_id)
    known = [task.task_id for task in known_tasks()]
    near = difflib.get_close_matches(task_id, known, 1)
    if not near and is_place(place := ":".join(task_id.rsplit(".", 1))):
        near = [place]
    listed = "`regrasp tasks` lists them; one of another simulator needs an experiment for it, with --config_name"
    raise UserError(
        "Unknown MuJoCo task",
        key=key,
        value=task_id,
        expected=f"one of {sorted(known)}, or a class of yours, my_package.my_module:MyTask",
        fix=f"did you mean '{near[0]}'?" if near else listed,
    )


def task_class(task_id: str, key: str) -> type[Task]:
    """The class of a task; this imports MuJoCo.

    Args:
        task_id: Its id, or its place.
        key: Where it is given, for errors.

    Raises:
        UserError: It is unknown, cannot be imported, or is no class that can be a task.
    """
    known = find_task(task_id, key)
    from regrasp.envs.mujoco.task import Task

    found = load_named(known.place, key=key, expected="a class that extends regrasp.envs.mujoco.task.Task")
    problem = None
    if not (isinstance(found, type) and issubclass(found, Task)):
        problem = f"{known.place} is {'a class of another kind' if isinstance(found, type) else 'no class'}"
    elif lacking := sorted(found.__abstractmethods__):
        problem = f"{known.place} is an unfinished task: it does not define {', '.join(lacking)}"
    if problem is not None:
        raise UserError(
            problem,
            key=key,
            value=task_id,
            expected="a class that extends regrasp.envs.mujoco.task.Task and defines its abstract methods",
            fix="name another class, or complete this one (docs/tasks.md)",
        )
    return found


def same_class(task_id: str) -> tuple[str, ...]:
    """All names of a task: ids and the place of one class."""
    known = list(known_tasks())
    places = {task.place for task in known if task.task_id == task_id} | {task_id}
    return (task_id, *places - {task_id}, *(task.task_id for task in known if task.place in places))


def search_path(python: str | None) -> list[str]:
    """Folders in which another process is to look for tasks: those of this one, if it runs the same Python."""
    return list(sys.path) if python is None else []


def extend_search(folders: Sequence[str]) -> None:
    """Look for modules in these folders too, after all others."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "another package"
