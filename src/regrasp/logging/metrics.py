"""Metrics of a run: always a JSON-lines file, optionally TensorBoard, Weights & Biases or SwanLab."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regrasp.errors import UserError
from regrasp.folders import atomic_file
from regrasp.logging.backends import open_backends

_log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
ENV_STEPS = "env/total_steps"
"""Tag of the environment steps taken since the run began: the horizontal axis of learning curves."""
EPISODE_METRICS = ("success_once", "return", "episode_len", "reward", "num_trajectories")
"""Names, after `env/` or `eval/`, that every task has; others there are the task's own measures."""
STEPS_PER_SECOND = "time/env_steps_per_second"
"""Tag of an update's environment steps divided by its wall time."""


class MetricsLogger:
    """Writes one line per `log` to `<log_dir>/metrics.jsonl` and forwards it to the chosen backends.

    A line is on disk when `log` returns. Damaged lines are dropped when the file is opened again, with a warning.
    Create one per run, in the main process only.

    Args:
        log_dir: Folder of the run; created if missing.
        project: Project name shown by W&B and SwanLab.
        experiment: Experiment name shown by W&B and SwanLab.
        backends: Any of `tensorboard`, `wandb`, `swanlab`; may be empty.
        config_text: The resolved configuration as YAML, handed to every backend (`metrics.jsonl` holds none of it).

    Raises:
        UserError: A backend is unknown, or its package is not installed.
    """

    def __init__(
        self, log_dir: Path, *, project: str, experiment: str, backends: Sequence[str], config_text: str
    ) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self.path = log_dir / METRICS_FILE
        self._backends = open_backends(backends, log_dir, project, experiment, config_text)
        _keep_lines(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` (tag to scalar) of global step `step`; not-a-number and infinity are stored as null."""
        scalars = {tag: float(value) for tag, value in metrics.items()}
        self._file.write(_encode(step, scalars) + "\n")
        os.fsync(self._file.fileno())
        for backend in self._backends:
            backend.log(step, scalars)

    def truncate_after(self, step: int, later: Path | None = None) -> None:
        """Forget every later step, so that a run resumed at `step` writes what an uninterrupted one would have.

        Holds for the file and for TensorBoard; W&B and SwanLab start a new run for a resumed one.

        Args:
            step: The last one that is kept.
            later: Folder to which the lines of later steps are moved.
        """
        self._file.close()
        _keep_lines(self.path, step, later)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        for backend in self._backends:
            backend.forget_after(step)

    def close(self) -> None:
        """Close the file and every backend."""
        self._file.close()
        for backend in self._backends:
            backend.close()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if all(value is None or isinstance(value, int | float) for value in row.values()) else None


def _keep_lines(path: Path, last_step: float = math.inf, later: Path | None = None) -> None:
    """Rewrite the file without damaged and without later lines; replaced as a whole, so a crash here loses nothing.

    Args:
        path: The file.
        last_step: Of the lines that stay.
        later: Folder for the later lines; None drops them.
    """
    if not path.exists():
        return
    lines = _sound_lines(path)
    if later is not None:
        _write_lines(later / path.name, [line for line, row in lines if row["step"] > last_step])
    kept = [line for line, row in lines if row["step"] <= last_step]
    if b"".join(line + b"\n" for line in kept) != path.read_bytes():
        _write_lines(path, kept)


def _write_lines(path: Path, lines: Sequence[bytes]) -> None:
    with atomic_file(path) as draft:
        draft.write_bytes(b"".join(line + b"\n" for line in lines))
