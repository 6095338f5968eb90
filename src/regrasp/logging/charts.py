"""Learning curves as inline SVG whose colours are the page's CSS variables, so they suit light and dark alike."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
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
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _BASE: "--base", _TUNED: "--tuned"}
"""Colours that Matplotlib draws with and the CSS variables that replace them."""

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


@dataclass(frozen=True)
class Series:
    """A metric over the run: `x` in environment steps, or in updates where the run did not count steps."""

    x: list[float]
    y: list[float]
    episodes: list[float]
    """Episodes behind each value, nan where unknown."""


def series(metrics: Sequence[dict[str, Any]], tag: str, episodes_tag: str = "") -> Series:
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


def counts_env_steps(metrics: Sequence[dict[str, Any]]) -> bool:
    """Whether the run logged its environment steps."""
    return any(ENV_STEPS in row for row in metrics)


def learning_curve(metrics: Sequence[dict[str, Any]]) -> Chart | None:
    """Success of training rollouts and of evaluations (with 95 % Wilson intervals); None where nothing was logged."""
    train = series(metrics, "env/success_once")
    evaluation = series(metrics, "eval/success_once", "eval/num_trajectories")
    if not train.x and not evaluation.x:
        return None
    with matplotlib.rc_context(fname=_STYLE):
        figure = Figure(figsize=(8.4, 3.1), layout="constrained")
        axes = figure.subplots()
        if train.x:
            axes.plot(train.x, train.y, color=_BASE, marker=_marker(train), markersize=2.5, label="training rollouts")
        if evaluation.x:
            _plot_evaluation(axes, evaluation)
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylabel("success")
        _horizontal_axis(axes, metrics)
        figure.legend(frameon=False, loc="outside upper right", ncols=2, labelcolor=_INK)
        return Chart("Success while training", _svg(figure))


def secondary_panels(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
    """What algorithms watch over the run; what was not logged is left out."""
    curves = [(series(metrics, tag), title, line) for tag, title, line in _PANELS]
    return [_panel(metrics, curve, title, line) for curve, title, line in curves if curve.x]


def measure_panels(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
    """The task's own measures over the run, or the return of a task without success.

    Means of training rollouts, and of evaluations.
    """
    known = {ENV_STEPS, *(f"env/{name}" for name in EPISODE_METRICS)}
    tags = dict.fromkeys(tag for row in metrics for tag in row if tag.startswith("env/") and tag not in known)
    names = [tag.removeprefix("env/") for tag in tags]
    if not series(metrics, "env/success_once").x and series(metrics, "env/return").x:
        names.insert(0, "return")
    return [
        _panel(metrics, series(metrics, f"env/{name}"), name.replace("_", " "), None, series(metrics, f"eval/{name}"))
        for name in names
    ]


def _panel(
    metrics: Sequence[dict[str, Any]], curve: Series, title: str, line: float | None, evaluation: Series | None = None
) -> Chart:
    with matplotlib.rc_context(fname=_STYLE):
        figure = Figure(figsize=(3.3, 2.1), layout="constrained")
        axes = figure.subplots()
        if line is not None:
            axes.axhline(line, color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        color = _TUNED if evaluation is None else _BASE
        axes.plot(curve.x, curve.y, color=color, marker=_marker(curve), markersize=2.5)
        if evaluation is not None:
            axes.plot(evaluation.x, evaluation.y, color=_TUNED, marker="o", markersize=4)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", useOffset=False)
        _horizontal_axis(axes, metrics)
        return Chart(title, _svg(figure))


def _plot_evaluation(axes: Axes, curve: Series) -> None:
    below, above = [], []
    for rate, episodes in zip(curve.y, curve.episodes, strict=True):
        low, high = (rate, rate) if math.isnan(episodes) else wilson_interval(round(rate * episodes), round(episodes))
        below.append(max(0.0, rate - low))
        above.append(max(0.0, high - rate))
    axes.errorbar(
        curve.x,
        curve.y,
        yerr=[below, above],
        color=_TUNED,
        marker="o",
        markersize=4,
        capsize=2.5,
        elinewidth=1.1,
        label="evaluation, 95 % interval",
    )


def _horizontal_axis(axes: Axes, metrics: Sequence[dict[str, Any]]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if counts_env_steps(metrics):
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
