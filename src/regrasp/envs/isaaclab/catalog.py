"""Names of Isaac Lab tasks. Imports neither Isaac Lab nor a numerical library."""

from __future__ import annotations

_TROCAR = "Assemble-Trocar-G129-Dex3"
_SPELLINGS = (
    (f"Isaac-{_TROCAR}-v0", f"IsaacContrib-{_TROCAR}"),
    (f"Isaac-{_TROCAR}-Eval-v0", f"IsaacContrib-{_TROCAR}-Eval"),
    ("Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0", "IsaacContrib-Stack-Cube-Franka-IK-Rel-Visuomotor"),
)
"""Tasks that were renamed between Isaac Lab 2.x and 3.x."""
_EVALUATIONS = dict(zip(_SPELLINGS[0], _SPELLINGS[1], strict=True))
"""Tasks with a variant of their own for evaluation."""


def is_lab_task(task_id: str) -> bool:
    """Whether a task, by its name, is one of Isaac Lab's or of a package for Isaac Lab."""
    package, name = split_id(task_id)
    return package is not None or name.startswith(("Isaac-", "IsaacContrib-"))


def evaluation_task(task_id: str) -> str:
    """The task's own variant for evaluation, or itself."""
    package, name = split_id(task_id)
    variant = _EVALUATIONS.get(name, name)
    return variant if package is None else f"{package}:{variant}"


def aliases(task_id: str) -> tuple[str, ...]:
    """The id itself, then its other spellings."""
    others = (name for spellings in _SPELLINGS if task_id in spellings for name in spellings if name != task_id)
    return (task_id, *others)


def namesakes(task_id: str) -> tuple[str, ...]:
    """The id and its other spellings, and those of the task whose variant for evaluation it is."""
    trained = [task for task, variant in _EVALUATIONS.items() if variant == task_id]
    return (*aliases(task_id), *(name for task in trained for name in aliases(task)))


def split_id(task_id: str) -> tuple[str | None, str]:
    """The package that registers the task (None for Isaac Lab itself) and the id, of `package:Task-Id`."""
    package, colon, name = task_id.rpartition(":")
    return (package or None, name) if colon else (None, task_id)


def is_recording_of(env_name: str, task_id: str) -> bool:
    """Whether a recording of task `env_name` has the observations and actions of `task_id`.

    Isaac Lab Mimic generates demonstrations of a task in a variant of it, `...-Mimic-v0`.
    """
    _, recorded = split_id(env_name)
    return recorded.replace("-Mimic", "") in aliases(split_id(task_id)[1])
