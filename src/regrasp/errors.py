"""Errors that users see, each with its exit code.

A user's mistake is a `UserError`: the command line prints it without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_UNSET = object()


def spelled(value: Any) -> str:
    """A value as YAML has it: `null`, `true`, `[1, 'a']`; texts in quotes."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Mapping():
            return f"{{{', '.join(f'{key}: {spelled(item)}' for key, item in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(spelled, value))}]"
        case Path():
            return repr(str(value))
        case _:
            return repr(value)


class RegraspError(Exception):
    """Base of every error that Regrasp raises on purpose."""

    exit_code = 1


class UserError(RegraspError):
    """Something the user gave is wrong, and the user can fix it.

    Args:
        problem: What is wrong, one sentence.
        file: The file that holds the mistake (or "command line").
        key: Dotted configuration key or flag.
        value: The value found; omit it where there is none.
        expected: What would have been accepted.
        fix: What to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        file: Any = None,
        key: str | None = None,
        value: Any = _UNSET,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.key = key
        self.value = None if value is _UNSET else value
        self._has_value = value is not _UNSET
        self.expected = expected
        self.fix = fix
        rows = [
            ("file", self.file),
            ("key", key),
            ("value", None if value is _UNSET else spelled(value)),
            ("expected", expected),
            ("fix", fix),
        ]
        lines = [problem, *(f"  {name + ':':<10}{text}" for name, text in rows if text)]
        super().__init__("\n".join(lines))

    def fields(self) -> dict[str, Any]:
        """The arguments that make this error again, in another process for example."""
        fields = {"problem": self.problem, "file": self.file, "key": self.key, "expected": self.expected}
        return {**fields, "fix": self.fix, **({"value": self.value} if self._has_value else {})}

    def in_file(self, file: Any) -> UserError:
        """The same error, naming the file that holds the mistake."""
        return self.at(file, self.key)

    def at(self, file: Any, key: str | None) -> UserError:
        """The same error, naming the file that holds the mistake and the key as it is written there."""
        return UserError(**{**self.fields(), "file": file, "key": key})


class LostError(RegraspError):
    """A process of the run failed, died or did not answer within its deadline."""

    exit_code = 3


class SimulatorError(LostError):
    """A simulator's process did."""


class TrainingHaltedError(RegraspError):
    """A run stopped itself: not-a-number, or no signal to learn from. What it had is saved."""

    exit_code = 4


class NoSignalError(TrainingHaltedError):
    """A run saw nothing to learn from, which `--force` lets pass."""
