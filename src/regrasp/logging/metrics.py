"""Metrics of a run: always a JSON-lines file, optionally TensorBoard, Weights & Biases or SwanLab."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from regrasp.errors import UserError
from regrasp.folders import append, atomic_file
from regrasp.logging.backends import Backend, Opener, TrackedRun
from regrasp.logging.side_channel import SideChannel

_log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
ENV_STEPS = "env/total_steps"
"""Tag of the environment steps taken since the run began: the horizontal axis of learning curves."""
EPISODE_METRICS = ("success_once", "return", "episode_len", "reward", "num_trajectories")
"""Names, after `env/` or `eval/`, that every task has; others there are the task's own measures."""
_HUGE = 1e300
"""No metric is as large; one that is cannot be drawn."""
STEPS_PER_SECOND = "time/env_steps_per_second"
"""Tag of an update's environment steps divided by its wall time."""


class MetricsLogger:
    """Writes one line per `log` to `<run>/metrics.jsonl` and forwards it to services.

    A line is on disk when `log` returns. What the disk or a service refuses is reported once, kept, and tried again
    with the next line. Damaged lines are dropped when the file is opened again, with a warning.
    Create one per run, in the main process only.

    Args:
        run: Its folder, created if missing, and what services call it.
        backends: From `prepare_backends`; may be empty.
    """

    def __init__(self, run: TrackedRun, backends: Mapping[str, Opener]) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        self.path = run.folder / METRICS_FILE
        self._outputs = [_Output("metrics.jsonl", lambda _: _LinesFile(self.path), run)]
        _keep_lines(self.path)
        self.path.touch()
        self._outputs += [_Output(name, opener, run) for name, opener in backends.items()]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` (tag to scalar) of global step `step`; not-a-number and infinity are stored as null."""
        scalars = {tag: float(value) for tag, value in metrics.items()}
        for output in self._outputs:
            output.log(step, scalars)

    def truncate_after(self, step: int, later: Path | None = None) -> int:
        """Forget every later step, so that a run resumed at `step` writes what an uninterrupted one would have.

        Holds for the file and for TensorBoard; W&B and SwanLab keep the values of a step that they were sent first.

        Args:
            step: The last one that is kept.
            later: Folder to which the lines of later steps are moved.

        Returns:
            How many later steps the file had.
        """
        num_later = _keep_lines(self.path, step, later)
        for output in self._outputs:
            output.forget_after(step)
        return num_later

    def close(self) -> None:
        """Close the file and every backend."""
        for output in self._outputs:
            output.close()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _LinesFile:
    """`metrics.jsonl` as a backend."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        with self._path.open("ab", buffering=0) as file:
            append(file, _encode(step, scalars).encode() + b"\n")

    def forget_after(self, step: int) -> None:
        """The lines have been moved."""

    def close(self) -> None:
        """Nothing is open."""


class _Output:
    """A backend that may fail: what it has not taken is given again with the next step, in order."""

    def __init__(self, name: str, opener: Opener, run: TrackedRun) -> None:
        self._channel = SideChannel(name, "What it lacks is tried again at every update.")
        self._end = SideChannel(name, "What it lacks is in metrics.jsonl.")
        self._untaken: list[tuple[int, Mapping[str, float]]] = []
        self._backend: Backend | None = None
        with SideChannel(name, "It is left out of this run.").attempt():
            self._backend = opener(run)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._backend is None:
            return
        self._untaken.append((step, scalars))
        with self._channel.attempt():
            while self._untaken:
                self._backend.log(*self._untaken[0])
                del self._untaken[0]

    def forget_after(self, step: int) -> None:
        if self._backend is not None:
            with self._channel.attempt():
                self._backend.forget_after(step)

    def close(self) -> None:
        if self._backend is not None:
            with self._end.attempt():
                self._backend.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a `metrics.jsonl`: one dict per line with `step` (int) and tags (float, nan where null was stored).

    Damaged lines are left out, with a warning.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    if not path.is_file():
        raise UserError("There are no metrics here.", file=path, fix="Give the folder of a run that has started.")
    rows = [row for _, row in _sound_lines(path)]
    return [{tag: math.nan if value is None else value for tag, value in row.items()} for row in rows]


def _encode(step: int, scalars: Mapping[str, float]) -> str:
    finite = {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}
    return json.dumps({"step": step, **finite}, allow_nan=False)


def _sound_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Every line that holds a step and numbers; what a crash or a power loss left of others is warned of."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"The metrics cannot be read: {error.strerror}", file=path) from error
    rows = [(line, _row(line)) for line in lines]
    damaged = [number for number, (line, row) in enumerate(rows, start=1) if line and row is None]
    if damaged:
        _log.warning("%s: damaged lines are left out: %d, the first of them line %d.", path, len(damaged), damaged[0])
    return [(line, row) for line, row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = from_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    known = all(value is None or (type(value) in (int, float) and abs(value) < _HUGE) for value in row.values())
    shares = (row.get(f"{part}/{EPISODE_METRICS[0]}") or 0.0 for part in ("env", "eval"))
    return row if known and all(0 <= share <= 1 for share in shares) else None


def _keep_lines(path: Path, last_step: float = math.inf, later: Path | None = None) -> int:
    """Rewrite the file without damaged and without later lines; replaced as a whole, so a crash here loses nothing.

    Args:
        path: The file.
        last_step: Of the lines that stay.
        later: Folder for the later lines; None drops them.

    Returns:
        The number of later steps.
    """
    if not path.exists():
        return 0
    lines = _sound_lines(path)
    if later is not None:
        _write_lines(later / path.name, [line for line, row in lines if row["step"] > last_step])
    kept = [line for line, row in lines if row["step"] <= last_step]
    if b"".join(line + b"\n" for line in kept) != path.read_bytes():
        _write_lines(path, kept)
    return len({row["step"] for _, row in lines if row["step"] > last_step})


def _write_lines(path: Path, lines: Sequence[bytes]) -> None:
    with atomic_file(path) as draft:
        draft.write_bytes(b"".join(line + b"\n" for line in lines))
