"""Names of Isaac Lab tasks. Imports neither Isaac Lab nor a numerical library."""

from __future__ import annotations

_TROCAR = "Assemble-Trocar-G129-Dex3"
_SPELLINGS = (
    (f"Isaac-{_TROCAR}-v0", f"IsaacContrib-{_TROCAR}"),
    (f"Isaac-{_TROCAR}-Eval-v0", f"IsaacContrib-{_TROCAR}-Eval"),
)
"""Tasks that were renamed between Isaac Lab 2.x and 3.x."""


def aliases(task_id: str) -> tuple[str, ...]:
    """The id itself, then its other spellings."""
    others = (name for spellings in _SPELLINGS if task_id in spellings for name in spellings if name != task_id)
    return (task_id, *others)


def split_id(task_id: str) -> tuple[str | None, str]:
    """The package that registers the task (None for Isaac Lab itself) and the id, of `package:Task-Id`."""
    package, colon, name = task_id.rpartition(":")
    return (package, name) if colon else (None, task_id)


def is_recording_of(env_name: str, task_id: str) -> bool:
    """Whether a recording of task `env_name` has the observations and actions of `task_id`.

    Isaac Lab Mimic generates demonstrations of a task in a variant of it, `...-Mimic-v0`.
    """
    _, recorded = split_id(env_name)
    return recorded.replace("-Mimic", "") in aliases(split_id(task_id)[1])
