"""The report page of a run folder: training, evaluation, or quickstart."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import yaml

import regrasp
from regrasp.errors import UserError
from regrasp.folders import COMMAND_FILE, CONFIG_FILE
from regrasp.logging.metrics import METRICS_FILE, read_metrics
from regrasp.logging.report import EvaluationSummary, ReportData, VideoItem, write_report
from regrasp.runner.videos import VIDEO_FOLDER, video_name
from regrasp.stages.play import EPISODES_FILE, EVALUATION_FILE

SUMMARY_FILE = "summary.json"
_PACKAGES = ("torch", "transformers", "mujoco-core", "tensordict", "numpy")


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    named = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"regrasp": regrasp.__version__, "python": platform.python_version(), **named}


def report_run(run_dir: Path, output: Path) -> Path:
    """Write the page of whatever the folder holds.

    Raises:
        UserError: The folder is no run.
    """
    summary_file = run_dir / SUMMARY_FILE
    has_numbers = any((run_dir / name).is_file() for name in (METRICS_FILE, EVALUATION_FILE))
    if summary_file.is_file():
        data = _quickstart_data(run_dir, json.loads(summary_file.read_text(encoding="utf-8")))
    elif has_numbers and (run_dir / CONFIG_FILE).is_file():
        data = _run_data(run_dir)
    else:
        raise UserError(
            "There is nothing to report in this folder",
            file=run_dir,
            expected=f"{SUMMARY_FILE}, or {CONFIG_FILE} with {METRICS_FILE} or {EVALUATION_FILE}",
            fix="give the folder that was printed as [INFO] Logging to: ...",
        )
    write_report(data, output)
    return output


def _run_data(run_dir: Path) -> ReportData:
    metrics = run_dir / METRICS_FILE
    evaluation = run_dir / EVALUATION_FILE
    command = run_dir / COMMAND_FILE
    config = (run_dir / CONFIG_FILE).read_text(encoding="utf-8")
    return ReportData(
        title=run_dir.name,
        seed=_seed(config),
        base=EvaluationSummary.from_json(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else None,
        metrics=read_metrics(metrics) if metrics.is_file() else [],
        videos=_videos(run_dir),
        config_text=config,
        versions=versions(),
        command=command.read_text(encoding="utf-8").rstrip() if command.is_file() else "",
    )


def _seed(config_text: str) -> int:
    config = yaml.safe_load(config_text)
    seed = config["runner"]["seed"]
    return config["actor"]["seed"] if seed is None else seed


def _videos(run_dir: Path) -> list[VideoItem]:
    """The recorded episodes of an evaluation."""
    episodes_file = run_dir / EPISODES_FILE
    if not episodes_file.is_file():
        return []
    episodes = [json.loads(line) for line in episodes_file.read_text(encoding="utf-8").splitlines()]
    paths = ((run_dir / VIDEO_FOLDER / video_name(e["episode"], e["success"]), e) for e in episodes)
    return [VideoItem(path, e["instruction"], e["success"], "base", e["seed"]) for path, e in paths if path.is_file()]


def _quickstart_data(run_dir: Path, summary: dict[str, Any]) -> ReportData:
    return ReportData(
        title=summary["task"],
        seed=summary["seed"],
        base=EvaluationSummary.from_json(json.dumps(summary["base"])),
        finetuned=EvaluationSummary.from_json(json.dumps(summary["finetuned"])),
        metrics=read_metrics(run_dir / "train" / METRICS_FILE),
        stage_seconds=summary["stage_seconds"],
        videos=[VideoItem(**{**video, "file": run_dir / video["file"]}) for video in summary["videos"]],
        config_text=(run_dir / CONFIG_FILE).read_text(encoding="utf-8"),
        versions=summary["versions"],
        command=summary["command"],
    )
