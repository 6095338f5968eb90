"""Metrics of a run: always a JSON-lines file, optionally TensorBoard, Weights & Biases or SwanLab."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regrasp.errors import UserError
from regrasp.folders import atomic_file
from regrasp.logging.backends import open_backends

METRICS_FILE = "metrics.jsonl"
ENV_STEPS = "env/total_steps"
"""Tag of the environment steps taken since the run began: the horizontal axis of learning curves."""
EPISODE_METRICS = ("success_once", "return", "episode_len", "reward", "num_trajectories")
"""Names, after `env/` or `eval/`, that every task has; others there are the task's own measures."""
STEPS_PER_SECOND = "time/env_steps_per_second"
"""Tag of an update's environment steps divided by its wall time."""


class MetricsLogger:
    """Writes one line per `log` to `<log_dir>/metrics.jsonl` and forwards it to the chosen backends.

    A line is on disk when `log` returns. A line torn by a crash is dropped when the file is opened again.
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
        _keep_lines(self.path, last_step=None)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` (tag to scalar) of global step `step`; not-a-number and infinity are stored as null."""
        scalars = {tag: float(value) for tag, value in metrics.items()}
        self._file.write(_encode(step, scalars) + "\n")
        os.fsync(self._file.fileno())
        for backend in self._backends:
            backend.log(step, scalars)

    def truncate_after(self, step: int) -> None:
        """Forget every later step, so that a run resumed at `step` writes what an uninterrupted one would have.

        Holds for the file and for TensorBoard; W&B and SwanLab start a new run for a resumed one.
        """
        self._file.close()
        _keep_lines(self.path, last_step=step)
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

    A last line torn by a crash is left out.

    Raises:
        UserError: The file is missing or a line is not a JSON object with a step.
    """
    if not path.is_file():
        raise UserError("There are no metrics here.", file=path, fix="Give the folder of a run that has started.")
    rows = []
    for number, line in enumerate(_whole_lines(path), start=1):
        row = _decode(path, number, line)
        rows.append({tag: math.nan if value is None else value for tag, value in row.items()})
    return rows


def _encode(step: int, scalars: Mapping[str, float]) -> str:
    finite = {tag: value if math.isfinite(value) else None for tag, value in scalars.items()}
    return json.dumps({"step": step, **finite}, allow_nan=False)


def _decode(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"Line {number} of the metrics is not JSON: {error.msg}.", file=path) from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise UserError(f"Line {number} of the metrics has no step.", file=path, expected='{"step": 1, ...}')
    return row


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def _keep_lines(path: Path, last_step: int | None) -> None:
    """Rewrite the file without torn and without later lines; replaced as a whole, so a crash here loses nothing."""
    if not path.exists():
        return
    kept = [
        line
        for number, line in enumerate(_whole_lines(path), start=1)
        if last_step is None or _decode(path, number, line)["step"] <= last_step
    ]
    text = "".join(f"{line}\n" for line in kept).encode()
    if text == path.read_bytes():
        return
    with atomic_file(path) as draft:
        draft.write_bytes(text)
