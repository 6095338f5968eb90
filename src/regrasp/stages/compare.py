"""One page about several runs: their curves in one chart, and what each came to, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from regrasp.errors import UserError
from regrasp.folders import CONFIG_FILE
from regrasp.logging.charts import SUCCESS_TAG, compared_curve, compared_panels, evaluations, series
from regrasp.logging.intervals import wilson_interval
from regrasp.logging.metrics import ENV_STEPS
from regrasp.logging.pages import render, write_page
from regrasp.logging.report import EvaluationSummary, Measure, ReportData
from regrasp.stages.report import run_data

_IDLE = ("runner.logger", "runner.resume_dir", "cluster")
"""Settings that say where a run is and not what it does."""


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % interval."""

    success: float
    episodes: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's."""
        return wilson_interval(round(self.success * self.episodes), self.episodes)


@dataclass(frozen=True)
class ComparedRun:
    """A run as the page shows it."""

    name: str
    data: ReportData
    settings: Mapping[str, str]
    """Every resolved value by its key; empty where the run keeps none."""

    @property
    def base(self) -> Rate | None:
        """Success before training, where it was evaluated."""
        if self.data.finetuned is not None or not self.data.metrics:
            return None if self.data.finetuned is None else _rate(self.data.base)
        found = evaluations(self.data.metrics)
        return Rate(found.y[0], round(found.episodes[0])) if found.x and found.x[0] == 0 and _known(found) else None

    @property
    def final(self) -> Rate | None:
        """Success at the end: of the quickstart's last stage, of an evaluation, or of the last one of a training."""
        summary = self.data.finetuned or (None if self.data.metrics else self.data.base)
        if summary is not None:
            return _rate(summary)
        found = evaluations(self.data.metrics)
        return Rate(found.y[-1], round(found.episodes[-1])) if found.x and _known(found) else None

    @property
    def training(self) -> float | None:
        """Success of the last update's own episodes, exploring."""
        found = series(self.data.metrics, SUCCESS_TAG)
        return found.y[-1] if found.x else None

    @property
    def updates(self) -> int:
        """Updates that were made."""
        return max((row["step"] for row in self.data.metrics), default=0)

    @property
    def env_steps(self) -> float | None:
        """Environment steps of all updates; None where they were not counted."""
        return max((row[ENV_STEPS] for row in self.data.metrics if ENV_STEPS in row), default=None)

    @property
    def seconds(self) -> float:
        """Of all updates and evaluations."""
        return sum(row.get("time/step", 0.0) + row.get("time/eval", 0.0) for row in self.data.metrics)

    @property
    def measures(self) -> Mapping[str, Measure]:
        """The task's own, where the run ended in an evaluation."""
        summary = self.data.finetuned or (None if self.data.metrics else self.data.base)
        return {} if summary is None else summary.measures


def _rate(summary: EvaluationSummary | None) -> Rate | None:
    return None if summary is None or summary.success is None else Rate(summary.success, summary.episodes)


def _known(found: Any) -> bool:
    return found.episodes[-1] == found.episodes[-1] and found.episodes[-1] >= 1


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Read runs, in their order.

    Raises:
        UserError: A folder is no run.
    """
    names = _names(folders)
    return [ComparedRun(name, run_data(folder), _settings(folder)) for name, folder in zip(names, folders, strict=True)]


def compare_runs(folders: Sequence[Path], output: Path) -> list[ComparedRun]:
    """Write a page about several runs.

    Raises:
        UserError: A folder is no run, or one is given twice.
    """
    twice = next((one for number, one in enumerate(folders) if one.resolve() in _resolved(folders[:number])), None)
    if twice is not None:
        raise UserError("A run is given twice", key="RUN", value=str(twice), fix="leave one of the two out")
    runs = read_runs(folders)
    counted = all(run.env_steps is not None for run in runs if run.data.metrics)
    metrics = [run.data.metrics if counted else _without_steps(run.data.metrics) for run in runs]
    bases = [None if run.base is None else (run.base.success, run.base.episodes) for run in runs]
    page = render(
        "compare.html",
        runs=runs,
        curve=compared_curve(list(zip(metrics, bases, strict=True))),
        panels=compared_panels(metrics),
        measures=list(dict.fromkeys(name for run in runs for name in run.measures)),
        differences=differences([run.settings for run in runs]),
    )
    write_page(page, output)
    return runs


def differences(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The keys whose values are not the same in all runs, and the value of each; `-` where a run has no such key."""
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = {key: [one.get(key, "-") for one in settings] for key in keys if not key.startswith(_IDLE)}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _settings(folder: Path) -> dict[str, str]:
    file = folder / CONFIG_FILE
    try:
        return dict(_flat(yaml.safe_load(file.read_text(encoding="utf-8")), ""))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}


def _flat(value: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for name, inner in value.items() for pair in _flat(inner, f"{key}.{name}" if key else str(name))]
    return [(key, yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip())]


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return _without_common_end([name.split("/") for name in names])
    return [str(folder) for folder in folders]


def _without_common_end(names: list[list[str]]) -> list[str]:
    """`seed_0` and `seed_1` of `seed_0/train` and `seed_1/train`."""
    same = 0
    for column in zip_longest(*(name[::-1] for name in names)):
        if len(set(column)) > 1:
            break
        same += 1
    return ["/".join(name[: len(name) - same] or name) for name in names]


def _resolved(folders: Sequence[Path]) -> set[Path]:
    return {folder.resolve() for folder in folders}


def _without_steps(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{tag: value for tag, value in row.items() if tag != ENV_STEPS} for row in metrics]
