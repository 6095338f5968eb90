"""Every stage in one go, on the embedded simulator; interrupted, it continues where it was."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from regrasp.checkpoint.layout import EXPORT
from regrasp.checkpoint.read import find_checkpoint
from regrasp.checkpoint.run_record import versions
from regrasp.config.parse import parse, read_json
from regrasp.config.types import NonNegativeFloat, changed
from regrasp.envs.registry import env_type_of
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import LoadedConfig
from regrasp.folders import CONFIG_FILE, atomic_file
from regrasp.logging.report import EvaluationSummary, Group
from regrasp.runner.run_folder import checkpoints_folder
from regrasp.stages.collect import collect
from regrasp.stages.play import PlayOptions, play
from regrasp.stages.pretrain import SHIPPED, check_instructions, pretrain
from regrasp.stages.report import SUMMARY_FILE, VideoEntry, report_run
from regrasp.stages.sft import train_base
from regrasp.stages.train import check as check_training
from regrasp.stages.train import train

_log = logging.getLogger(__name__)

STATE_FILE = "stages.json"
"""The journal: which stages are done."""
_NUM_VIDEOS = 6
_FIX = "copy the file again from where the quickstart was made; or delete it, and stages are done again"
_STRICT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


@checked_dataclass(frozen=True, config=_STRICT)
class _Stage:
    """A stage in the journal."""

    seconds: NonNegativeFloat
    """Wall time."""
    cpu_seconds: NonNegativeFloat
    """Of all processes."""
    result: dict[str, Any]


@checked_dataclass(frozen=True, config=_STRICT)
class _Made:
    """What comes of a stage that later ones need: a folder."""

    folder: str


@checked_dataclass(frozen=True, config=_STRICT)
class _Evaluated:
    """What comes of an evaluation."""

    summary: EvaluationSummary
    videos: tuple[VideoEntry, ...]


_RESULTS = {
    "pretrain": _Made,
    "collect": None,
    "sft": None,
    "evaluate_base": _Evaluated,
    "train": _Made,
    "evaluate_finetuned": _Evaluated,
}
"""The stages, and what is read again of what they gave."""


def _read_stage(name: str, content: Any, file: Path) -> _Stage:
    """A stage of a journal; one that was interrupted has given nothing.

    Raises:
        UserError: There is no such stage, or a value is of the wrong kind.
    """
    title, dot, _ = name.partition(".")
    if title not in _RESULTS:
        raise UserError("No stage of a quickstart", file=file, key=name, expected=", ".join(_RESULTS), fix=_FIX)
    stage, kind = parse(_Stage, content, file=file, key=name, fix=_FIX), _RESULTS[title]
    if kind is not None and not dot:
        parse(kind, stage.result, file=file, key=f"{name}.result", fix=_FIX)
    return stage


def read_stages(folder: Path) -> tuple[dict[str, float], EvaluationSummary | None, str | None]:
    """What a quickstart that goes on has done.

    Returns:
        The seconds of the stages that are done, the base model's evaluation if that is, and the stage that is next.

    Raises:
        UserError: The journal is damaged.
    """
    file = folder / STATE_FILE
    content = read_json(file, fix=_FIX) if file.is_file() else {}
    stages = {name: _read_stage(name, value, file) for name, value in content.items()}
    base = stages.get("evaluate_base")
    summary = None if base is None else parse(_Evaluated, base.result, file=file, key="evaluate_base.result").summary
    seconds = {name: stage.seconds for name, stage in stages.items() if name in _RESULTS}
    return seconds, summary, next((name for name in _RESULTS if name not in stages), None)


@dataclass
class _Journal:
    """Which stages are done, how long they took, and what they gave; on disk after every stage."""

    file: Path
    stages: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, folder: Path, settings: str) -> _Journal:
        """Continue the journal of `folder`, or begin one.

        Raises:
            UserError: The folder belongs to other settings, or the journal is damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config_file, journal = folder / CONFIG_FILE, cls(folder / STATE_FILE, {})
        if not journal.file.is_file():
            config_file.write_text(settings, encoding="utf-8")
            return journal
        if not config_file.is_file() or config_file.read_bytes() != settings.encode():
            raise UserError(
                "This folder holds a quickstart with other settings",
                file=config_file,
                expected="the settings that it was begun with",
                fix="give another --output, or remove the folder",
            )
        journal.stages = {
            name: asdict(_read_stage(name, content, journal.file))
            for name, content in read_json(journal.file, fix=_FIX).items()
        }
        return journal

    def run(self, name: str, title: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a stage unless it is done, and return what it gave."""
        print(f"\n== {title}", flush=True)
        if name in self.stages:
            print("   done before")
            return self.stages[name]["result"]
        earlier = self.stages.get(f"{name}.partial", {"seconds": 0.0, "cpu_seconds": 0.0})
        started, cpu_started = time.monotonic(), _cpu_seconds()

        def write(as_name: str, result: dict[str, Any]) -> None:
            self.stages[as_name] = {
                "seconds": earlier["seconds"] + time.monotonic() - started,
                "cpu_seconds": earlier["cpu_seconds"] + _cpu_seconds() - cpu_started,
                "result": result,
            }
            self._write()

        try:
            result = stage()
        except BaseException:
            write(f"{name}.partial", {})
            raise
        self.stages.pop(f"{name}.partial", None)
        write(name, result)
        return result

    def seconds(self, kind: Literal["seconds", "cpu_seconds"] = "seconds") -> dict[str, float]:
        """Stage name to wall or CPU time, over all interruptions."""
        return {name: round(stage[kind], 1) for name, stage in self.stages.items()}

    def _write(self) -> None:
        with atomic_file(self.file) as draft:
            draft.write_text(json.dumps(self.stages, indent=2), encoding="utf-8")


def _cpu_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def check(config: ExperimentConfig) -> None:
    """Find, before the first stage, what a later one would be refused for.

    Raises:
        UserError: See the stages' own checks.
    """
    check_instructions(config)
    env_type_of(config.env.train, "train").check_expert(config.env.train, "train")
    check_training(changed(config, "actor.model.model_path", None))


def quickstart(loaded: LoadedConfig, folder: Path, command: str) -> None:
    """Run every stage in `folder`, and write summary and report; `command` is how to run it again.

    Raises:
        KeyboardInterrupt: A signal stopped a stage; called again, the quickstart continues there.
    """
    _log.info("Logging to: %s", folder.resolve())
    config, seed = loaded.config, loaded.config.seed
    check(config)
    journal = _Journal.open(folder, loaded.to_yaml())
    base = folder / "base"
    pretrained = journal.run("pretrain", "Backbone: where is what the words name?", lambda: _pretrain(config))
    journal.run("collect", "Demonstrations by the scripted expert", lambda: _collect(config, folder / "demos"))
    journal.run(
        "sft",
        "Base model from the demonstrations",
        lambda: _sft(config, folder / "demos", Path(pretrained["folder"]), base),
    )
    before = journal.run("evaluate_base", "Evaluation of the base model", lambda: _play(loaded, base, folder, "base"))
    trained = journal.run("train", "Reinforcement learning", lambda: _train(loaded, base, folder / "train", command))
    after = journal.run(
        "evaluate_finetuned",
        "Evaluation of the fine-tuned model",
        lambda: _play(loaded, Path(trained["folder"]), folder, "finetuned"),
    )
    summary = {
        "task": config.env.train.init_params.id,
        "seed": seed,
        "base": before["summary"],
        "finetuned": after["summary"],
        "stage_seconds": journal.seconds(),
        "total_seconds": round(sum(journal.seconds().values()), 1),
        "stage_cpu_seconds": journal.seconds("cpu_seconds"),
        "total_cpu_seconds": round(sum(journal.seconds("cpu_seconds").values()), 1),
        "model": trained["folder"],
        "videos": before["videos"] + after["videos"],
        "versions": versions(),
        "command": command,
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report = report_run(folder, folder / "report.html")
    _print_end(summary, report)


def _pretrain(config: ExperimentConfig) -> dict[str, Any]:
    folder, error = pretrain(config)
    origin = "comes with the package" if folder.is_relative_to(SHIPPED) else "from an earlier run"
    print(f"   {folder}" + (f" ({origin})" if error is None else f", median error {error:.2f} cm"))
    return {"folder": str(folder), "median_error_cm": error}


def _collect(config: ExperimentConfig, output: Path) -> dict[str, Any]:
    _, attempts = collect(config, output, overwrite=True)
    return {"attempts": attempts}


def _sft(config: ExperimentConfig, data: Path, backbone: Path, output: Path) -> dict[str, Any]:
    _, result = train_base(config, data, backbone, output, overwrite=True)
    return asdict(result)


def _train(loaded: LoadedConfig, base: Path, run_dir: Path, command: str) -> dict[str, Any]:
    """Train from `base`, or from the newest checkpoint of an interrupted training."""
    checkpoints = checkpoints_folder(run_dir, loaded.config)
    resume = str(checkpoints) if any(checkpoints.glob("global_step_*")) else None
    loaded = changed(changed(loaded, "config.actor.model.model_path", str(base)), "config.runner.resume_dir", resume)
    run_dir.mkdir(exist_ok=True)
    if not train(loaded, run_dir, command):
        raise KeyboardInterrupt
    return {"folder": str(find_checkpoint(checkpoints) / EXPORT)}


def _play(loaded: LoadedConfig, model: Path, folder: Path, group: Group) -> dict[str, Any]:
    """Evaluate with videos of the first episodes."""
    output = folder / f"evaluate_{group}"
    output.mkdir(exist_ok=True)
    loaded = changed(loaded, "config.actor.model.model_path", str(model))
    loaded = changed(loaded, "config.env.eval.video_cfg.save_video", True)
    result = play(loaded, output, PlayOptions(num_videos=_NUM_VIDEOS, group=group))
    videos = sorted(result.videos, key=lambda video: video.file.name)
    return {
        "summary": asdict(result.summary),
        "videos": [asdict(video) | {"file": str(video.file.relative_to(folder))} for video in videos],
    }


def _print_end(summary: dict[str, Any], report: Path) -> None:
    print()
    for name in ("base", "finetuned"):
        result = summary[name]
        low, high = result["ci95"]
        interval = f"95 % interval {low:.1%} to {high:.1%}, {result['episodes']} episodes"
        print(f"{name:<10} {result['success']:6.1%}  ({interval})")
    minutes, cpu_minutes = summary["total_seconds"] / 60, summary["total_cpu_seconds"] / 60
    print(f"{'time':<10} {minutes:.1f} minutes ({cpu_minutes:.1f} of CPU time)")
    print(f"{'report':<10} {report.resolve()}")
