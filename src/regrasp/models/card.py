"""The model card: what a model is, what it was made for, how well it does that, and how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import regrasp
from regrasp.config.parse import read_json
from regrasp.folders import CARD_FILE
from regrasp.logging.intervals import wilson_interval
from regrasp.logging.text import printable
from regrasp.models.config import CONFIG_FILE
from regrasp.models.origin import EXPERIMENT_FILE, Origin, read_origin

if TYPE_CHECKING:
    from regrasp.logging.report import EvaluationSummary

_MAX_INSTRUCTIONS = 20
_FIX = "restore the file, or give a complete model folder"


def write_card(folder: Path, evaluation: EvaluationSummary | None = None) -> None:
    """Write the card of the model that a folder holds into it; see `model_card`."""
    (folder / CARD_FILE).write_text(model_card(folder, evaluation), encoding="utf-8")


def model_card(
    folder: Path,
    evaluation: EvaluationSummary | None = None,
    *,
    repo: str | None = None,
    experiment: str | None = None,
) -> str:
    """The card of the model in a folder, as Markdown with the hub's metadata at its head.

    Args:
        folder: With `config.json`, and what the model was made for where that is known.
        evaluation: How the model did, where that is known.
        repo: Its name on the hub, where it has one.
        experiment: Which one it was trained with, where that is known; it is named to load the model only where the
            folder does not keep it.

    Raises:
        UserError: A file of the folder is damaged.
    """
    kind, origin = str(read_json(folder / CONFIG_FILE, fix=_FIX).get("model_type")), read_origin(folder)
    title = f"{kind} for {' and '.join(origin.tasks)}" if origin.tasks else kind
    parts = [
        _metadata(kind, title, origin, evaluation),
        f"# {as_text(title)}\n",
        f"A robot policy of the kind `{as_text(kind)}`, written by Regrasp {regrasp.__version__}.\n",
        "## Success\n",
        *(_success(evaluation) if evaluation else ["It was not evaluated where this card was written.\n"]),
        "## What it was made for\n",
        *_purpose(origin, experiment),
        "## How to load it\n",
        _usage(repo or "FOLDER", None if (folder / EXPERIMENT_FILE).is_file() else experiment),
    ]
    return "\n".join(parts)


def _metadata(kind: str, title: str, origin: Origin, evaluation: EvaluationSummary | None) -> str:
    """The block of YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if evaluation is not None and evaluation.success is not None:
        task = ", ".join(origin.tasks) or "simulation"
        result = EvalResult("robotics", task, task, "success_rate", round(evaluation.success, 6), metric_name="success")
        results = [result]
    tags = ["robotics", "reinforcement-learning", "vision-language-action", kind]
    data = ModelCardData(
        library_name="regrasp", pipeline_tag="robotics", tags=tags, eval_results=results, model_name=title
    )
    return f"---\n{data}\n---\n"


def _success(evaluation: EvaluationSummary) -> Iterator[str]:
    yield f"{as_text(evaluation.policy)}, {evaluation.episodes} episodes in simulation.\n"
    if evaluation.success is not None and evaluation.ci95 is not None:
        rows = {"all": (evaluation.success, evaluation.ci95, evaluation.episodes)} | {
            words: (won / total, wilson_interval(won, total), total)
            for words, (won, total) in evaluation.per_instruction.items()
            if total
        }
        yield "| Instruction | Success | 95 % interval | Episodes |\n|---|---|---|---|"
        for words, (rate, (low, high), total) in rows.items():
            yield f"| {as_text(words)} | {rate:.1%} | {low:.1%} to {high:.1%} | {total} |"
        yield ""
    if evaluation.measures:
        yield "| Measure | Mean | 95 % interval |\n|---|---|---|"
        for name, measure in evaluation.measures.items():
            interval = "" if measure.low is None else f"{measure.low:.3f} to {measure.high:.3f}"
            yield f"| {as_text(name)} | {measure.mean:.3f} | {interval} |"
        yield ""


def _purpose(origin: Origin, experiment: str | None) -> Iterator[str]:
    facts: Mapping[str, str | None] = {
        "Task": ", ".join(f"`{as_text(task)}`" for task in origin.tasks) or "not recorded",
        "Experiment": f"`{as_text(experiment)}`" if experiment else None,
    }
    for name, fact in facts.items():
        if fact:
            yield f"- {name}: {fact}"
    shown, more = origin.instructions[:_MAX_INSTRUCTIONS], len(origin.instructions) - _MAX_INSTRUCTIONS
    if shown:
        yield (
            "- Instructions: "
            + ", ".join(f"“{as_text(words)}”" for words in shown)
            + (f", and {more} more" if more > 0 else "")
        )
    yield ""


def _usage(place: str, experiment: str | None) -> str:
    config = f" --config_name {experiment}" if experiment else ""
    return f"""```python
import regrasp

policy = regrasp.load_policy("{place}")
```

```
regrasp play --model_path {place}{config} --video
```

Regrasp loads safetensors and JSON only; no code of this folder is run.
"""


def as_text(words: str) -> str:
    """Words inside a line or a cell of Markdown, as they are."""
    escaped = "".join(f"\\{letter}" if letter in "\\|<>[]*_`#" else letter for letter in printable(words))
    return escaped.replace("\n", " ")
