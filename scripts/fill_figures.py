"""Writes the figures of `benchmarks/results/` into the README, between its `figures:` markers.

python scripts/fill_figures.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLES = ("env_steps", "policy_latency", "train_samples", "correctness")
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
    base = sum(row["base success"] for row in document["rows"]) / len(document["rows"])
    return [*rows, ["mean", f"{base:.1%}", "", f"{document['mean_finetuned_success']:.1%}", "", "", ""]]


def table(document: Document) -> list[list[str]]:
    """The rows of a result file as they are."""
    rows = document["rows"]
    return [list(rows[0]), *([_cell(cell) for cell in row.values()] for row in rows)]


def quickstart_stages(document: Document) -> dict[str, str]:
    """Seconds of each stage of the first seed."""
    stages = next(iter(document["stage_seconds"].values()))
    return {name: f"{seconds:.0f} s" for name, seconds in stages.items()}


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table, the first row being its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def replace_between(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers of `name`."""
    pattern = rf"(<!-- figures:{name} -->\n).*?\n?(<!-- /figures -->)"
    return re.sub(pattern, lambda match: match[1] + content + "\n" + match[2], text, count=1, flags=re.DOTALL)


def main() -> None:
    """Fill the tables of the quickstart."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    document = json.loads((RESULTS / "quickstart_seeds.json").read_text())
    text = replace_between(text, "quickstart", markdown(quickstart(document)))
    for name in TABLES:
        text = replace_between(text, name, markdown(table(json.loads((RESULTS / f"{name}.json").read_text()))))
    for stage, seconds in quickstart_stages(document).items():
        text = re.sub(rf"(?m)^(\| {stage} \| .* \|)[^|]*\|$", lambda match, s=seconds: f"{match[1]} {s} |", text)
    readme.write_text(text)


if __name__ == "__main__":
    main()
