"""What Python packages of Isaac Lab tasks register, read from their sources: importing them needs the simulator."""

from __future__ import annotations

import ast
import functools
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from regrasp.envs.env_type import TaskRow
from regrasp.errors import UserError

_log = logging.getLogger(__name__)
LAB_PACKAGE = "isaaclab_tasks"
EXPERIMENT_KEY = "regrasp_cfg_entry_point"
"""Key of `gym.register(kwargs=...)` under which a task names its experiment's YAML file, as `module:file.yaml`."""
_PYTHON_KEYS = tuple(f"{block}.python" for block in ("env.train", "env.eval", "env.isaaclab"))
_PROBE = """
import importlib.util, sys
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    print(spec.origin if spec and spec.origin else "")
"""
_PROBE_SECONDS = 60


@dataclass(frozen=True)
class RegisteredTask:
    """One `gym.register` call."""

    id: str
    file: Path
    """The source file that registers it."""
    experiment: Path | None
    """The YAML file that the task names as its Regrasp experiment."""
    lost_experiment: str | None = None
    """What it names, where that cannot be found."""


def pythons_in(overrides: Sequence[str]) -> tuple[str, ...]:
    """The simulator's interpreters that the overrides name; a configuration's own are not known before it is found."""
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return tuple(dict.fromkeys(value.strip("'\"") for key, _, value in pairs if key in _PYTHON_KEYS))


def package_folder(name: str, python: str | None = None) -> Path | None:
    """Folder of a package that an interpreter (None: ours) has, found without importing it; None if it has none."""
    package, lab = _origins(python, (name, "isaaclab"))
    if package is not None:
        return package.parent
    # The published wheel keeps its packages below `isaaclab/source`, where only Isaac Sim looks.
    nested = lab.parent / "source" / name / name if lab is not None else None
    return nested if nested is not None and nested.is_dir() else None


def has_simulator(python: str | None = None) -> bool:
    """Whether an interpreter (None: ours) has Isaac Sim."""
    return _origins(python, ("isaacsim",))[0] is not None


def _origins(python: str | None, names: tuple[str, ...]) -> tuple[Path | None, ...]:
    if python is not None and python != sys.executable:
        return _origins_elsewhere(python, names)
    specs = (find_spec(name) for name in names)
    return tuple(Path(spec.origin) if spec and spec.origin else None for spec in specs)


@functools.cache
def _origins_elsewhere(python: str, names: tuple[str, ...]) -> tuple[Path | None, ...]:
    try:
        answer = subprocess.run(
            [python, "-c", _PROBE, *names], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        # A wrong interpreter is reported when the simulator is started with it.
        return (None,) * len(names)
    return tuple(Path(line) if line else None for line in answer.stdout.splitlines()[-len(names) :])


def experiment_of_task(task_id: str, pythons: Sequence[str] = ()) -> Path | None:
    """The experiment that a task names, `Task-Id` of Isaac Lab or `package:Task-Id`; None if it names none.

    Raises:
        UserError: It names one that cannot be found.
    """
    package, _, name = task_id.rpartition(":")
    for python in (None, *pythons):
        folder = package_folder((package or LAB_PACKAGE).split(".")[0], python)
        for task in registered_tasks(folder) if folder else ():
            if task.id == name and task.lost_experiment is not None:
                raise UserError(
                    "The task names an experiment that cannot be found",
                    file=task.file,
                    key=EXPERIMENT_KEY,
                    value=task.lost_experiment,
                    expected="a literal `module:file.yaml`, a module of the task's own package, or the path of a file",
                    fix="correct it where the task is registered, or name an experiment with --config_name",
                )
            if task.id == name and task.experiment is not None:
                return task.experiment
    return None


def installed_tasks(task_id: str | None, pythons: Sequence[str]) -> Iterator[TaskRow]:
    """Isaac Lab's tasks and those of the package in `package:Task-Id`; an interpreter later on may repeat some."""
    packages = [LAB_PACKAGE, *([task_id.rpartition(":")[0].split(".")[0]] if task_id and ":" in task_id else [])]
    for python in pythons:
        if package_folder(LAB_PACKAGE, python) is None:
            _log.warning("%s cannot be started, or has no package %s", python, LAB_PACKAGE)
    for package in packages[1:]:
        if not any(package_folder(package, python) for python in (None, *pythons)):
            _log.warning("no package %s was found; name the Python that has it: env.isaaclab.python=<it>", package)
    for python in (None, *pythons):
        runnable = "Isaac Sim is here" if has_simulator(python) else "no Isaac Sim here"
        for package in packages:
            folder = package_folder(package, python)
            for found in registered_tasks(folder) if folder else ():
                name = found.id if package == LAB_PACKAGE else f"{package}:{found.id}"
                if found.lost_experiment is not None:
                    lost = found.lost_experiment
                    _log.warning("%s names an experiment that cannot be found: %s (%s)", name, lost, found.file)
                yield TaskRow(name, runnable, (str(found.experiment),) if found.experiment else (), str(folder))


def registered_tasks(folder: Path) -> list[RegisteredTask]:
    """Every task that the package in `folder` registers by a literal id, sorted by id."""
    tasks: dict[str, RegisteredTask] = {}
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if "register(" in text:
            for task in _tasks_of(file, text, folder):
                tasks.setdefault(task.id, task)
    return [tasks[name] for name in sorted(tasks)]


def _tasks_of(file: Path, text: str, folder: Path) -> Iterator[RegisteredTask]:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        # A broken module registers nothing; importing it says why.
        return
    module = ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name_of(node.func) == "register":
            arguments = {keyword.arg: keyword.value for keyword in node.keywords}
            identifier = _text(arguments.get("id") or (node.args[0] if node.args else None), module)
            if identifier is not None:
                entry = _experiment_entry(arguments.get("kwargs"), module)
                experiment = _file(entry, folder)
                yield RegisteredTask(identifier, file, experiment, entry if experiment is None else None)


def _name_of(function: ast.expr) -> str | None:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)


def _experiment_entry(kwargs: ast.expr | None, module: str) -> str | None:
    """What a task names as its experiment; source text where it is no literal."""
    if not isinstance(kwargs, ast.Dict):
        return None
    for key, value in zip(kwargs.keys, kwargs.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == EXPERIMENT_KEY:
            return _text(value, module) or ast.unparse(value)
    return None


def _file(entry: str | None, folder: Path) -> Path | None:
    if entry is None:
        return None
    module, _, name = entry.rpartition(":")
    place = folder.parent.joinpath(*module.split(".")) if module else Path()
    path = (place if place.is_dir() else place.parent) / name
    return path if path.is_file() else None


def _text(node: ast.expr | None, module: str) -> str | None:
    """The value of a string, or of an f-string of module names such as `f"{agents.__name__}:ppo.yaml"`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [_text(part, module) for part in node.values]
        return None if None in parts else "".join(part for part in parts if part is not None)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, module)
    if isinstance(node, ast.Name) and node.id == "__name__":
        return module
    if isinstance(node, ast.Attribute) and node.attr == "__name__" and isinstance(node.value, ast.Name):
        return f"{module}.{node.value.id}"
    return None
