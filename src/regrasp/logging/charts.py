"""Learning curves as inline SVG whose colours are the page's CSS variables, so they suit light and dark alike."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from regrasp.logging.intervals import wilson_interval
from regrasp.logging.metrics import ENV_STEPS, EPISODE_METRICS

_INK, _MUTED, _GRID, _BASE, _TUNED = (f"#0{index}0{index}0{index}" for index in range(1, 6))  # as in `_STYLE`
RUN_COLOURS = 8
"""Runs that a comparison can tell apart by their colours."""
_RUNS = [f"#1{index}1{index}1{index}" for index in range(1, RUN_COLOURS + 1)]
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))
_VARIABLES = {
    **{_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _BASE: "--base", _TUNED: "--tuned"},
    **{colour: f"--run{number}" for number, colour in enumerate(_RUNS, start=1)},
}
"""Colours that Matplotlib draws with and the CSS variables that replace them."""
_WIDE, _NARROW, _PANEL = (8.4, 3.1), (3.7, 2.9), (3.3, 2.1)
"""Sizes in inches: of the learning curve on a desktop and on a phone, and of the other charts."""

Metrics = Sequence[dict[str, Any]]
"""The lines of a run, as `read_metrics` gives them."""
SUCCESS_TAG = f"env/{EPISODE_METRICS[0]}"
_STYLE = Path(__file__).with_name("charts.mplstyle")

_PANELS = (
    ("train/actor/approx_kl", "Approximate KL", None),
    ("train/critic/explained_variance", "Value: explained variance", None),
    ("train/actor/ratio", "Probability ratio", 1.0),
    ("train/critic/q_data", "Critics: value of what was done", None),
    ("train/sac/critic_loss", "Critics: loss", None),
    ("train/actor/size", "Residual: mean square", None),
)
"""Tag, title and reference line of the secondary charts."""


@dataclass(frozen=True)
class Chart:
    """A titled inline SVG."""

    title: str
    svg: Markup
    narrow: Markup | None = None
    """The same for a narrow window, where the wide one's letters would be too small."""


@dataclass(frozen=True)
class Series:
    """A metric over the run: `x` in environment steps, or in updates where the run did not count steps."""

    x: list[float]
    y: list[float]
    episodes: list[float]
    """Episodes behind each value, nan where unknown."""


def series(metrics: Metrics, tag: str, episodes_tag: str = "") -> Series:
    """The finite values of `tag`, each at the environment steps known by then."""
    counted = counts_env_steps(metrics)
    found, steps = Series([], [], []), 0.0
    for row in metrics:
        steps = row.get(ENV_STEPS, steps)
        if math.isfinite(row.get(tag, math.nan)):
            found.x.append(steps if counted else row["step"])
            found.y.append(row[tag])
            found.episodes.append(row.get(episodes_tag, math.nan))
    return found


def counts_env_steps(metrics: Metrics) -> bool:
    """Whether the run logged its environment steps."""
    return any(ENV_STEPS in row for row in metrics)


def learning_curve(metrics: Metrics, base: tuple[float, int] | None = None) -> Chart | None:
    """Success of training rollouts and of evaluations (with 95 % Wilson intervals); None where nothing was logged.

    Args:
        metrics: As `read_metrics` gives them.
        base: Success of the base model, and episodes behind it: the first point, unless the run itself has one.
    """
    train = series(metrics, SUCCESS_TAG)
    evaluation = evaluations(metrics, base)
    if not train.x and not evaluation.x:
        return None

    def draw(size: tuple[float, float]) -> Markup:
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        if train.x:
            axes.plot(train.x, train.y, color=_BASE, marker=_marker(train), markersize=2.5, label="training rollouts")
        if evaluation.x:
            _plot_evaluation(axes, evaluation, _TUNED, "evaluation, 95 % interval")
        _success_axes(axes, [metrics])
        figure.legend(frameon=False, loc="outside upper right", ncols=2, labelcolor=_INK)
        return _svg(figure)

    return _of_two_widths("Success while training", draw)


def compared_curve(runs: Sequence[tuple[Metrics, tuple[float, int] | None]]) -> Chart | None:
    """Success of several runs: evaluations with their intervals, or training rollouts of a run without any.

    Args:
        runs: Metrics, and success of the base model with the episodes behind it, in the order of the colours.
    """
    curves = [(evaluations(metrics, base), series(metrics, SUCCESS_TAG)) for metrics, base in runs]
    if not any(evaluation.x or train.x for evaluation, train in curves):
        return None

    def draw(size: tuple[float, float]) -> Markup:
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for number, (evaluation, train) in enumerate(curves):
            if evaluation.x:
                _plot_evaluation(axes, evaluation, _colour(number), None, _dash(number))
            else:
                axes.plot(train.x, train.y, color=_colour(number), linestyle=_dash(number), marker=_marker(train))
        _success_axes(axes, [metrics for metrics, _ in runs])
        return _svg(figure)

    return _of_two_widths("Success while training", draw)


def compared_panels(runs: Sequence[Metrics]) -> list[Chart]:
    """The task's own measures, and what algorithms watch, of several runs; what is one value in all is left out."""
    tags = {f"env/{name}": name.replace("_", " ") for metrics in runs for name in _measures(metrics)}
    tags |= {tag: title for tag, title, _ in _PANELS}
    found: list[Chart] = []
    for tag, title in tags.items():
        curves = [series(metrics, tag) for metrics in runs]
        if len({value for curve in curves for value in curve.y}) < 2:
            continue
        with matplotlib.rc_context(fname=_STYLE):
            figure = Figure(figsize=_PANEL, layout="constrained")
            axes = figure.subplots()
            for number, curve in enumerate(curves):
                axes.plot(curve.x, curve.y, color=_colour(number), linestyle=_dash(number), linewidth=1.1)
            _panel_axes(axes, runs)
            found.append(Chart(title, _svg(figure)))
    return found


def secondary_panels(metrics: Metrics) -> list[Chart]:
    """What algorithms watch over the run; what was not logged, or never changed, is left out."""
    curves = [(series(metrics, tag), title, line) for tag, title, line in _PANELS]
    return [_panel(metrics, curve, title, line) for curve, title, line in curves if _varies(curve)]


def measure_panels(metrics: Metrics) -> list[Chart]:
    """The task's own measures over the run, or the return of a task without success; without those that never change.

    Means of training rollouts, and of evaluations.
    """
    curves = [(name, *_of_measure(metrics, name)) for name in _measures(metrics)]
    return [
        _panel(metrics, train, name.replace("_", " "), None, evaluation)
        for name, train, evaluation in curves
        if _varies(train, evaluation)
    ]


def constant_measures(metrics: Metrics) -> dict[str, float]:
    """The task's own measures that had one value throughout the run, and it."""
    curves = {name.replace("_", " "): _of_measure(metrics, name) for name in _measures(metrics)}
    return {name: train.y[0] for name, (train, evaluation) in curves.items() if not _varies(train, evaluation)}


def evaluations(metrics: Metrics, base: tuple[float, int] | None = None) -> Series:
    """Success of a run's evaluations, with that of the base model as the first point where the run has none."""
    found = series(metrics, "eval/success_once", "eval/num_trajectories")
    if base is None or (found.x and found.x[0] == 0):
        return found
    return Series([0.0, *found.x], [base[0], *found.y], [float(base[1]), *found.episodes])


def _measures(metrics: Metrics) -> list[str]:
    known = {ENV_STEPS, *(f"env/{name}" for name in EPISODE_METRICS)}
    tags = dict.fromkeys(tag for row in metrics for tag in row if tag.startswith("env/") and tag not in known)
    names = [tag.removeprefix("env/") for tag in tags]
    if not series(metrics, SUCCESS_TAG).x and series(metrics, "env/return").x:
        names.insert(0, "return")
    return [name for name in names if series(metrics, f"env/{name}").x]


def _of_measure(metrics: Metrics, name: str) -> tuple[Series, Series]:
    return series(metrics, f"env/{name}"), series(metrics, f"eval/{name}")


def _varies(*curves: Series) -> bool:
    return any(len(set(curve.y)) > 1 for curve in curves) or len({value for curve in curves for value in curve.y}) > 1


def _panel(metrics: Metrics, curve: Series, title: str, line: float | None, evaluation: Series | None = None) -> Chart:
    with matplotlib.rc_context(fname=_STYLE):
        figure = Figure(figsize=_PANEL, layout="constrained")
        axes = figure.subplots()
        if line is not None:
            axes.axhline(line, color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        color = _TUNED if evaluation is None else _BASE
        axes.plot(curve.x, curve.y, color=color, marker=_marker(curve), markersize=2.5)
        if evaluation is not None:
            axes.plot(evaluation.x, evaluation.y, color=_TUNED, marker="o", markersize=4)
        _panel_axes(axes, [metrics])
        return Chart(title, _svg(figure))


def _of_two_widths(title: str, draw: Callable[[tuple[float, float]], Markup]) -> Chart:
    with matplotlib.rc_context(fname=_STYLE):
        return Chart(title, draw(_WIDE), draw(_NARROW))


def _success_axes(axes: Axes, runs: Sequence[Metrics]) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("success")
    _horizontal_axis(axes, runs)


def _panel_axes(axes: Axes, runs: Sequence[Metrics]) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="y", useOffset=False)
    _horizontal_axis(axes, runs)


def _colour(number: int) -> str:
    return _RUNS[number % RUN_COLOURS]


def _dash(number: int) -> Any:
    """How the line of a run is broken, so that more runs than colours can be told apart."""
    return _DASHES[number // RUN_COLOURS % len(_DASHES)]


def _plot_evaluation(axes: Axes, curve: Series, colour: str, label: str | None, dash: Any = "solid") -> None:
    below, above = [], []
    for rate, episodes in zip(curve.y, curve.episodes, strict=True):
        low, high = (rate, rate) if math.isnan(episodes) else wilson_interval(round(rate * episodes), round(episodes))
        below.append(max(0.0, rate - low))
        above.append(max(0.0, high - rate))
    axes.errorbar(
        curve.x,
        curve.y,
        yerr=[below, above],
        color=colour,
        linestyle=dash,
        marker="o",
        markersize=4,
        capsize=2.5,
        elinewidth=1.1,
        label=label,
    )


def _horizontal_axis(axes: Axes, runs: Sequence[Metrics]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6 if axes.bbox.width > 72 * _NARROW[0] else 4, integer=True))
    if any(map(counts_env_steps, runs)):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("environment steps")
    else:
        axes.set_xlabel("update")


def _marker(curve: Series) -> str:
    return "o" if len(curve.x) <= 60 else ""


def _svg(figure: Figure) -> Markup:
    """The figure as an SVG element without prolog, background and fixed size; Matplotlib has escaped its texts."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<svg ([^>]*?)>", _responsive, text, count=1, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text)


def _responsive(match: re.Match[str]) -> str:
    attributes = re.sub(r'\s*\b(width|height)="[^"]*"', "", match[1])
    return f'<svg {attributes} role="img">'
