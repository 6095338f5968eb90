"""What a run says of a model that it wrote: its experiment, and how the model did in the run's own evaluation."""

from __future__ import annotations

from pathlib import Path

import yaml

from regrasp.checkpoint.layout import EXPORT, step_of
from regrasp.checkpoint.run_record import run_of
from regrasp.folders import CONFIG_FILE
from regrasp.logging.intervals import wilson_interval
from regrasp.logging.metrics import EPISODE_METRICS, METRICS_FILE, read_metrics
from regrasp.logging.report import EvaluationSummary, Measure

_SUCCESS, _COUNT = f"eval/{EPISODE_METRICS[0]}", f"eval/{EPISODE_METRICS[-1]}"


def checkpoint_of_model(folder: Path) -> Path | None:
    """The checkpoint whose `model/` a folder is; None for another folder."""
    place = folder.absolute()
    return place.parent if place.name == EXPORT and step_of(place.parent) is not None else None


def evaluation_at(checkpoint: Path) -> EvaluationSummary | None:
    """How the model of a checkpoint did in its run's evaluation after the same update; None where there was none."""
    run, step = run_of(checkpoint), step_of(checkpoint)
    if run is None or not (run / METRICS_FILE).is_file():
        return None
    row = {tag: value for row in read_metrics(run / METRICS_FILE) if row["step"] == step for tag, value in row.items()}
    episodes = round(row.get(_COUNT, 0))
    if episodes < 1:
        return None
    known = {f"eval/{name}" for name in EPISODE_METRICS}
    own = {tag.removeprefix("eval/"): row[tag] for tag in row if tag.startswith("eval/") and tag not in known}
    success = row.get(_SUCCESS)
    if success is None:
        own = {"return": row["eval/return"], **own} if "eval/return" in row else own
    return EvaluationSummary(
        success,
        None if success is None else wilson_interval(round(success * episodes), episodes),
        episodes,
        {},
        {name: Measure(value, None, None) for name, value in own.items()},
        f"The policy after update {step}, in its run's own evaluation",
    )


def experiment_of(run_dir: Path) -> str | None:
    """The experiment of a run, by its name; None where the run does not say it."""
    try:
        settings = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
        name = settings["runner"]["logger"]["experiment_name"]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None
