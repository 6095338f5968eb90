"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from regrasp.errors import UserError
from regrasp.logging.charts import constant_measures, learning_curve, measure_panels, secondary_panels
from regrasp.logging.intervals import mean_interval, wilson_interval
from regrasp.logging.pages import render, write_page

Group = Literal["base", "finetuned"]
_GROUP_TITLES: dict[Group, str] = {"base": "Base", "finetuned": "Fine-tuned"}


_STRICT = ConfigDict(strict=True, extra="forbid")
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@checked_dataclass(frozen=True, config=_STRICT)
class Measure:
    """Mean of one of the task's own measures at the end of the episodes."""

    mean: float
    low: float | None
    """Lower bound of the 95 % interval; None where there is one episode."""
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Measure:
        """From one value per episode; at least one."""
        low, high = mean_interval(values) if len(values) > 1 else (None, None)
        return cls(fmean(values), low, high)


@checked_dataclass(frozen=True, config=_STRICT)
class EvaluationSummary:
    """Success of one policy over independent episodes."""

    success: Share | None
    """Success rate in [0, 1]; None where the task has no success signal."""
    ci95: tuple[Share, Share] | None
    """95 % Wilson interval of `success`."""
    episodes: Annotated[int, Field(ge=1, lt=2**53)]
    per_instruction: dict[str, tuple[int, int]]
    """Successes and episodes by instruction; empty where the task has no success signal."""
    measures: dict[str, Measure] = field(default_factory=dict)
    """The task's own measures, such as the stage reached; without success also the return."""
    policy: str = "Policy"
    """What acted, in words."""
    model: str | None = None
    """Folder of the model that acted, or of the checkpoint whose weights it had; None where no model did, or it is not
    known."""

    def __post_init__(self) -> None:
        """An instruction has no more successes than episodes; a rate has an interval."""
        if (self.success is None) != (self.ci95 is None):
            raise ValueError("a success rate and its interval come together")
        if not all(0 <= successes <= total for successes, total in self.per_instruction.values()):
            raise ValueError("more successes than episodes")

    @classmethod
    def from_counts(
        cls,
        per_instruction: Mapping[str, tuple[int, int]],
        measures: Mapping[str, Sequence[float]] | None = None,
        policy: str = "Policy",
    ) -> EvaluationSummary:
        """Add up (successes, episodes) by instruction; at least one episode.

        Args:
            per_instruction: Counts.
            measures: The task's own measures, one value per episode each.
            policy: What acted, in words.
        """
        successes = sum(count for count, _ in per_instruction.values())
        episodes = sum(count for _, count in per_instruction.values())
        if episodes == 0:
            raise ValueError("an evaluation has at least one episode")
        interval = wilson_interval(successes, episodes)
        means = _means(measures or {})
        return cls(successes / episodes, interval, episodes, dict(per_instruction), means, policy)

    @classmethod
    def without_success(cls, measures: Mapping[str, Sequence[float]], policy: str) -> EvaluationSummary:
        """Of a task that has no success signal; see `from_counts`.

        Args:
            measures: At least one, with one value per episode each.
            policy: What acted, in words.
        """
        return cls(None, None, len(next(iter(measures.values()))), {}, _means(measures), policy)

    def to_json(self) -> str:
        """The summary as indented JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def _means(measures: Mapping[str, Sequence[float]]) -> dict[str, Measure]:
    return {name: Measure.of(values) for name, values in measures.items()}


@dataclass(frozen=True)
class VideoItem:
    """One recorded episode."""

    file: Path
    instruction: str
    success: bool | None
    """None where the task has no success signal."""
    group: Group
    seed: int | None
    """Episodes of the two groups with one seed and instruction are shown side by side; None where it is not known."""


@dataclass(frozen=True)
class Origin:
    """A command that made a run, or a part of it."""

    command: str
    """The command line; empty where it is not known."""
    config_text: str
    """Its settings, as YAML."""
    versions: dict[str, str]
    """Of software; empty where they are not known."""
    updates: str = ""
    """Which part of the run it made; empty where there is no other."""
    changes: str = ""
    """How its settings differ from those before it."""


@dataclass(frozen=True)
class ReportData:
    """What a report may show; a section whose data is missing is left out."""

    title: str
    seed: int
    base: EvaluationSummary | None = None
    finetuned: EvaluationSummary | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """As `read_metrics` gives them."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage, in the order to show."""
    videos: list[VideoItem] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    """What made the run: one, or where it was continued each in its order."""
    titles: Mapping[Group, str] = field(default_factory=dict)
    """What the groups are called, other than usual."""
    warnings: list[str] = field(default_factory=list)
    """What the run warned of."""


@dataclass(frozen=True)
class Live:
    """How far a run is, for a page that is watched while it goes on."""

    state: str
    """In a word or two."""
    update: int = 0
    """Updates that are finished."""
    total: int | None = None
    """Updates of the whole run; None where it makes none."""
    seconds_left: float | None = None
    """From the last update on, by the time that the last ones took."""
    updated: float | None = None
    """When the last update was finished, in seconds since 1970."""
    refresh_seconds: float = 5.0
    """Between two looks of the page at the run."""


def write_report(run: ReportData, path: Path) -> None:
    """Write the page; pictures, curves and videos are inside it, nothing is loaded from elsewhere.

    Raises:
        UserError: A video is missing.
    """
    write_page(report_page(run), path)


def report_page(
    run: ReportData, live: Live | None = None, *, nonce: str | None = None, video: Callable[[Path], str] | None = None
) -> str:
    """The page as HTML.

    Args:
        run: What it shows.
        live: How far the run is; None for one that is looked at afterwards.
        nonce: Allows the page's own script, which looks for what is new; None: there is none.
        video: The address of a video; by default the video itself, as a data address.

    Raises:
        UserError: A video is missing.
    """
    base = run.base and _rate_of(run.base)
    return render(
        "report.html",
        run=run,
        live=live,
        nonce=nonce,
        video=video or _data_uri,
        groups={**_GROUP_TITLES, **run.titles},
        columns=list(_evaluations(run)),
        headlines=_headlines(run),
        change=_change(run),
        instructions=_instructions(run),
        measures=_measures(run),
        curve=learning_curve(run.metrics, base),
        measure_curves=measure_panels(run.metrics),
        constants=constant_measures(run.metrics),
        panels=secondary_panels(run.metrics),
        longest_stage=max(run.stage_seconds.values(), default=0.0),
        episodes=_episodes(run.videos),
    )


def _rate_of(summary: EvaluationSummary) -> tuple[float, int] | None:
    return None if summary.success is None else (summary.success, summary.episodes)


@dataclass(frozen=True)
class _Rate:
    """A success rate as the page shows it."""

    group: Group
    successes: int
    episodes: int

    @property
    def success(self) -> float:
        return self.successes / self.episodes if self.episodes else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.successes, self.episodes)


def _evaluations(run: ReportData) -> dict[Group, EvaluationSummary]:
    both: dict[Group, EvaluationSummary | None] = {"base": run.base, "finetuned": run.finetuned}
    return {group: summary for group, summary in both.items() if summary is not None}


def _headlines(run: ReportData) -> list[_Rate]:
    return [
        _Rate(group, round(one.success * one.episodes), one.episodes)
        for group, one in _evaluations(run).items()
        if one.success is not None
    ]


def _change(run: ReportData) -> str:
    rates = {rate.group: rate for rate in _headlines(run)}
    if len(rates) < 2:
        return ""
    base, finetuned = rates["base"], rates["finetuned"]
    apart = finetuned.interval[0] > base.interval[1] or finetuned.interval[1] < base.interval[0]
    points = 100 * (finetuned.success - base.success)
    return f"{points:+.1f} points; the 95 % intervals {'do not overlap' if apart else 'overlap'}."


def _instructions(run: ReportData) -> dict[str, list[_Rate]]:
    """By instruction, the rates of the groups that met it."""
    rows: dict[str, list[_Rate]] = {}
    for group, summary in _evaluations(run).items():
        for instruction, counts in summary.per_instruction.items():
            rows.setdefault(instruction, []).append(_Rate(group, *counts))
    return rows


def _measures(run: ReportData) -> dict[str, dict[Group, Measure]]:
    """By measure, the mean of each group that has it."""
    rows: dict[str, dict[Group, Measure]] = {}
    for group, summary in _evaluations(run).items():
        for name, measure in summary.measures.items():
            rows.setdefault(name.replace("_", " "), {})[group] = measure
    return rows


def _episodes(videos: list[VideoItem]) -> list[list[VideoItem]]:
    """Videos of one seed and instruction together, base first."""
    rows: dict[tuple[int | None, str], list[VideoItem]] = {}
    for item in sorted(videos, key=lambda item: item.group):
        rows.setdefault((item.seed, item.instruction), []).append(item)
    return list(rows.values())


def _data_uri(path: Path) -> str:
    if not path.is_file():
        raise UserError("A video of the report is missing.", file=path, fix="Record it again with --video.")
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
