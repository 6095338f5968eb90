"""Writes the figures of `benchmarks/results/` into README and docs, between `figures:` markers.

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
    rows = [["Seed", "Base", "95 % interval", "Fine-tuned", "95 % interval", "Env steps", "CPU min"]]
    for row in document["rows"]:
        cells = [str(row["seed"])]
        for group in ("base", "finetuned"):
            low, high = (float(bound) for bound in row[f"{group} 95 % interval"].split("-"))
            cells += [f"{row[f'{group} success']:.1%}", f"{low:.1%} to {high:.1%}"]
        rows.append([*cells, f"{row['env steps']:,}", f"{row['CPU minutes']:.1f}"])
    base = sum(row["base success"] for row in document["rows"]) / len(document["rows"])
    return [*rows, ["mean", f"{base:.1%}", "", f"{document['mean_finetuned_success']:.1%}", "", "", ""]]


def quickstart_curves(document: Document) -> list[list[str]]:
    """Success of the evaluations while training, with the environment steps that it took, by seed."""
    curves = document["curves"]
    rows = [["Evaluation", *(f"Seed {seed}" for seed in curves), "Mean"]]
    for number, points in enumerate(zip(*curves.values(), strict=True), start=1):
        mean = sum(success for _, success in points) / len(points)
        rows.append([str(number), *(f"{success:.1%} at {steps:,}" for steps, success in points), f"{mean:.1%}"])
    return rows


def table(document: Document) -> list[list[str]]:
    """The rows of a result file as they are."""
    rows = document["rows"]
    return [list(rows[0]), *([_cell(cell) for cell in row.values()] for row in rows)]


def quickstart_stages(document: Document) -> dict[str, str]:
    """CPU time of each stage of the first seed."""
    stages = next(iter(document["stage_cpu_seconds"].values()))
    return {name: f"{seconds:.0f} s" for name, seconds in stages.items()}


def groot_gpu(document: Document) -> list[list[str]]:
    """Milliseconds of each path, and how many times as fast as the plain one it is."""
    rerun, plain4, plain64 = (document[f"{key}_ms"] for key in ("update_rerun", "rollout4_eager", "rollout64_eager"))
    kinds = (
        ("PPO update of 32 samples, backbone re-run, eager", "update_rerun_ms", rerun),
        ("the same, features cached, eager", "update_cached_eager_ms", rerun),
        ("the same, features cached, compiled, CUDA graph", "update_cached_ms", rerun),
        ("the same, context frozen and cached, eager", "update_frozen_context_eager_ms", rerun),
        ("the same, context frozen and cached, compiled, CUDA graph", "update_frozen_context_ms", rerun),
        ("inference for 4 environments, plain", "rollout4_eager_ms", plain4),
        ("inference for 4 environments, compiled, CUDA graph", "rollout4_ms", plain4),
        ("inference for 64 environments, plain", "rollout64_eager_ms", plain64),
        ("inference for 64 environments, compiled, CUDA graph", "rollout64_ms", plain64),
    )
    rows = [[text, f"{document[key]:.1f}", f"{plain / document[key]:.2f}"] for text, key, plain in kinds]
    return [["", "ms", "times as fast"], *rows]


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
    """Fill the tables."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    document = json.loads((RESULTS / "quickstart_seeds.json").read_text())
    text = replace_between(text, "quickstart", markdown(quickstart(document)))
    for name in TABLES:
        text = replace_between(text, name, markdown(table(json.loads((RESULTS / f"{name}.json").read_text()))))
    for stage, seconds in quickstart_stages(document).items():
        text = re.sub(rf"(?m)^(\| {stage} \| .* \|)[^|]*\|$", lambda match, s=seconds: f"{match[1]} {s} |", text)
    readme.write_text(text)
    algorithms = ROOT / "docs" / "algorithms.md"
    curves = markdown(quickstart_curves(document))
    algorithms.write_text(replace_between(algorithms.read_text(), "quickstart_curves", curves))
    for page, name in (
        ("algorithms", "noise_gain"),
        ("algorithms", "compare_algorithms"),
        ("algorithms", "compare_sb3"),
        ("algorithms", "residual_settings"),
        ("algorithms", "critic_sees"),
        ("algorithms", "distill_seeds"),
        ("trocar", "trocar_steps"),
        ("environments", "metaworld"),
        ("openvla", "openvla_gpu"),
        ("openvla", "compare_openvla"),
        ("models", "gpu_graphs"),
    ):
        file, rows = ROOT / "docs" / f"{page}.md", table(json.loads((RESULTS / f"{name}.json").read_text()))
        file.write_text(replace_between(file.read_text(), name, markdown(rows)))
    models = ROOT / "docs" / "models.md"
    gpu = json.loads((RESULTS / "groot_gpu.json").read_text())
    models.write_text(replace_between(models.read_text(), "groot_gpu", markdown(groot_gpu(gpu))))


if __name__ == "__main__":
    main()
