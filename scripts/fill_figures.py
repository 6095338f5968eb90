"""Writes the figures of `benchmarks/results/` into the README, between its `figures:` markers.

python scripts/fill_figures.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Document = dict[str, Any]


def quickstart(document: Document) -> list[list[str]]:
    """Success before and after, by seed."""
    rows = [["Seed", "Base", "95 % interval", "Fine-tuned", "95 % interval", "Episodes", "Minutes"]]
    for row in document["rows"]:
        cells = [str(row["seed"])]
        for group in ("base", "finetuned"):
            low, high = (float(bound) for bound in row[f"{group} 95 % interval"].split("-"))
            cells += [f"{row[f'{group} success']:.1%}", f"{low:.1%} to {high:.1%}"]
        rows.append([*cells, str(row["episodes"]), f"{row['minutes']:.1f}"])
    return [*rows, ["mean", "", "", f"{document['mean_finetuned_success']:.1%}", "", "", ""]]


def quickstart_stages(document: Document) -> dict[str, str]:
    """Seconds of each stage of the first seed."""
    stages = next(iter(document["stage_seconds"].values()))
    return {name: f"{seconds:.0f} s" for name, seconds in stages.items()}


def plain(columns: dict[str, str]) -> Callable[[Document], list[list[str]]]:
    """A table of the named columns under other titles."""

    def table(document: Document) -> list[list[str]]:
        body = [[_number(row[name]) for name in columns] for row in document["rows"]]
        return [list(columns.values()), *body]

    return table


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


TABLES: dict[str, tuple[str, Callable[[Document], list[list[str]]]]] = {
    "quickstart": ("quickstart_seeds", quickstart),
    "env_steps": (
        "env_steps",
        plain(
            {
                "environments": "Environments",
                "steps/s": "Steps/s",
                "steps/s with policy": "Steps/s with policy",
                "lowest": "Lowest",
                "highest": "Highest",
            }
        ),
    ),
    "policy_latency": (
        "policy_latency",
        plain(
            {
                "batch": "Batch",
                "encode ms": "Backbone",
                "act ms": "4 denoising steps",
                "predict ms": "Whole prediction",
            }
        ),
    ),
    "train_samples": (
        "train_samples",
        plain(
            {
                "stage": "Stage",
                "batch": "Batch",
                "samples/s cached": "Cached",
                "samples/s re-run": "Computed again",
                "ratio": "Ratio",
            }
        ),
    ),
}


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table, the first row being its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def replace_between(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers of `name`."""
    pattern = rf"(<!-- figures:{name} -->\n).*?(\n<!-- /figures -->)"
    return re.sub(pattern, lambda match: match[1] + content + match[2], text, count=1, flags=re.DOTALL)


def main() -> None:
    """Fill every table whose results exist."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, (file, table) in TABLES.items():
        path = RESULTS / f"{file}.json"
        if path.is_file():
            text = replace_between(text, name, markdown(table(json.loads(path.read_text()))))
    path = RESULTS / "quickstart_seeds.json"
    if path.is_file():
        for stage, seconds in quickstart_stages(json.loads(path.read_text())).items():
            text = re.sub(rf"(?m)^(\| {stage} \| .* \|)[^|]*\|$", lambda match, s=seconds: f"{match[1]} {s} |", text)
    readme.write_text(text)


if __name__ == "__main__":
    main()
