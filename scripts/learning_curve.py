"""Draws one of a run's metrics over its updates, of training rollouts and of evaluations.

python scripts/learning_curve.py logs/regrasp/<run> stage docs/images/trocar_curve.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from regrasp.logging.metrics import METRICS_FILE, read_metrics

WINDOW = 5
"""Updates of the running mean."""


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("metric", help="as after `env/` in metrics.jsonl")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    rows = read_metrics(args.run / METRICS_FILE)
    updates, values = [row["step"] for row in rows], [row[f"env/{args.metric}"] for row in rows]
    means = [sum(values[max(0, i - WINDOW + 1) : i + 1]) / min(WINDOW, i + 1) for i in range(len(values))]
    evaluated = [(row["step"], row[f"eval/{args.metric}"]) for row in rows if f"eval/{args.metric}" in row]
    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(updates, values, "o", color="#9aa5b1", markersize=3, label="an update's training episodes")
    axes.plot(updates, means, color="#52606d", label=f"their mean over {WINDOW} updates")
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), "s-", color="#c2410c", label="evaluation, without exploration")
    axes.set_xlabel("update")
    axes.set_ylabel(args.metric.replace("_", " "))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
