"""The report page of a run folder: training, evaluation, or quickstart."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from regrasp.checkpoint.layout import step_of
from regrasp.checkpoint.run_record import RunRecord, Start
from regrasp.config.parse import parse, read_json
from regrasp.config.types import NonNegativeFloat, NonNegativeInt
from regrasp.errors import UserError
from regrasp.folders import CONFIG_FILE, leaves_folder
from regrasp.logging.metrics import METRICS_FILE, read_metrics
from regrasp.logging.report import EvaluationSummary, Group, Origin, ReportData, VideoItem, write_report
from regrasp.logging.warning_file import read_warnings
from regrasp.runner.resume import changes_between
from regrasp.runner.videos import EVALUATIONS_FOLDER, VIDEO_FOLDER, video_name
from regrasp.stages.play import EPISODES_FILE, EVALUATION_FILE

T = TypeVar("T")
SUMMARY_FILE = "summary.json"
_WHICH = "give the folder that was printed as [INFO] Logging to: ..."
_FIX = "copy the file again from where the run was made, or move it out of the folder"
_STRICT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class _Episode:
    """What the page shows of a line of `EPISODES_FILE`."""

    episode: NonNegativeInt
    instruction: str
    success: bool | None
    seed: NonNegativeInt


@dataclass(frozen=True, config=_STRICT)
class VideoEntry:
    """A video in `SUMMARY_FILE`."""

    file: str
    """Relative to the folder."""
    instruction: str
    success: bool | None
    group: Group
    seed: NonNegativeInt


@dataclass(frozen=True, config=_STRICT)
class _Summary:
    """`SUMMARY_FILE`."""

    task: str
    seed: NonNegativeInt
    base: EvaluationSummary
    finetuned: EvaluationSummary
    stage_seconds: dict[str, NonNegativeFloat]
    videos: tuple[VideoEntry, ...]
    versions: dict[str, str]
    command: str


def report_run(run_dir: Path, output: Path) -> Path:
    """Write the page of whatever the folder holds.

    Raises:
        UserError: The folder is no run.
    """
    write_report(run_data(run_dir), output)
    return output


def run_data(run_dir: Path, *, begun: bool = False) -> ReportData:
    """What a run's page shows.

    Args:
        run_dir: Folder of a training, evaluation or quickstart run.
        begun: Whether a run that has no numbers yet has a page too.

    Raises:
        UserError: The folder is no run, or a file of it is damaged.
    """
    if not run_dir.is_dir():
        problem = "This is a file, not the folder of a run" if run_dir.exists() else "There is no such folder"
        raise UserError(problem, file=run_dir, expected="the folder of a run", fix=_WHICH)
    summary_file = run_dir / SUMMARY_FILE
    has_numbers = any((run_dir / name).is_file() for name in (METRICS_FILE, EVALUATION_FILE))
    if summary_file.is_file():
        return _quickstart_data(run_dir, summary_file)
    if (has_numbers or begun) and (run_dir / CONFIG_FILE).is_file():
        return _run_data(run_dir)
    raise UserError(
        "There is nothing to report in this folder",
        file=run_dir,
        expected=f"{SUMMARY_FILE}, or {CONFIG_FILE} with {METRICS_FILE} or {EVALUATION_FILE}",
        fix=_WHICH,
    )


def _run_data(run_dir: Path) -> ReportData:
    metrics = run_dir / METRICS_FILE
    evaluation = run_dir / EVALUATION_FILE
    config = _text(run_dir / CONFIG_FILE)
    rows = read_metrics(metrics) if metrics.is_file() else []
    summary = _read(EvaluationSummary, evaluation) if evaluation.is_file() else None
    return ReportData(
        title=run_dir.name,
        seed=_seed(config, run_dir / CONFIG_FILE),
        base=summary,
        titles={} if summary is None else {"base": summary.policy},
        metrics=rows,
        videos=_videos(run_dir),
        origins=_origins(run_dir),
        warnings=read_warnings(run_dir),
    )


def _origins(run_dir: Path) -> list[Origin]:
    """The commands of a run and their settings, each with the updates of the run that are its."""
    starts = RunRecord(run_dir).starts or [Start(0, "", CONFIG_FILE)]
    texts = [_text(run_dir / start.config) for start in starts]
    ends = [min((later.update for later in starts[number:]), default=None) for number in range(1, len(starts) + 1)]
    changes = ["", *(changes_between(*pair) for pair in pairwise(texts))]
    return [
        Origin(
            start.command,
            text,
            start.versions,
            _updates(start.update, end) if len(starts) > 1 else "",
            changed,
        )
        for start, end, text, changed in zip(starts, ends, texts, changes, strict=True)
    ]


def _updates(first: int, end: int | None) -> str:
    """Which updates of the run a command made, after `first` and up to `end`, where a later one went on."""
    if end is None:
        return f"From update {first + 1}"
    if end <= first:
        return f"From update {first + 1}; none of it is left, the run went on from update {end}"
    return f"Updates {first + 1} to {end}"


def _read(kind: type[T], file: Path) -> T:
    return parse(kind, read_json(file, fix=_FIX), file=file, fix=_FIX)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file cannot be read: {error}", file=file, expected="UTF-8 text", fix=_FIX) from error


def _seed(config_text: str, file: Path) -> int:
    try:
        config = yaml.safe_load(config_text)
        seeds = config["runner"]["seed"], config["actor"]["seed"]
    except (yaml.YAMLError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"Not the configuration of a run: {error}", file=file, fix=_FIX) from error
    seed = seeds[1] if seeds[0] is None else seeds[0]
    if type(seed) is not int:
        raise UserError("Not a seed", file=file, key="runner.seed", value=seed, expected="a whole number", fix=_FIX)
    return seed


def _videos(run_dir: Path) -> list[VideoItem]:
    """The recorded episodes of an evaluation, or of the newest one of a training run."""
    file = run_dir / EPISODES_FILE
    if not file.is_file():
        return _newest_videos(run_dir)
    items: list[VideoItem] = []
    for number, line in enumerate(_text(file).splitlines(), start=1):
        try:
            content = from_json(line)
        except ValueError as error:
            raise UserError(f"Line {number} is not valid JSON: {error}", file=file, fix=_FIX) from error
        episode = parse(_Episode, content, file=f"{file}:{number}", fix=_FIX)
        path = f"{VIDEO_FOLDER}/{video_name(episode.episode, episode.success)}"
        if (run_dir / path).is_file():
            video = _video_file(run_dir, path, file)
            items.append(VideoItem(video, episode.instruction, episode.success, "base", episode.seed))
    return items


def _newest_videos(run_dir: Path) -> list[VideoItem]:
    """Of a training run's newest evaluation that was recorded."""
    folders = [folder for folder in (run_dir / EVALUATIONS_FOLDER).glob("*/") if any(folder.rglob("*.mp4"))]
    if not folders:
        return []
    newest = max(folders, key=lambda folder: step_of(folder) or 0)
    outcomes = {"success": True, "failure": False}
    return [
        VideoItem(
            file,
            f"After update {step_of(newest)}, episode {int(number)}",
            outcomes.get(outcome),
            "finetuned",
            None,
        )
        for file in sorted(newest.rglob("*.mp4"))
        for number, _, outcome in [file.stem.removeprefix("episode_").partition("_")]
        if number.isdigit()
    ]


def _video_file(run_dir: Path, name: str, file: Path) -> Path:
    """The path of a video that `file` names; the page carries it, so it has to be a video and the run's own.

    Raises:
        UserError: It is not.
    """
    path = run_dir / name
    outside = leaves_folder(name) or not path.resolve().is_relative_to(run_dir.resolve())
    if outside or path.suffix != ".mp4":
        raise UserError(
            "Not a video of this run", file=file, key="videos", value=name, expected="an .mp4 in the folder", fix=_FIX
        )
    return path


def _quickstart_data(run_dir: Path, file: Path) -> ReportData:
    summary = _read(_Summary, file)
    return ReportData(
        title=summary.task,
        seed=summary.seed,
        base=summary.base,
        finetuned=summary.finetuned,
        metrics=read_metrics(run_dir / "train" / METRICS_FILE),
        stage_seconds=summary.stage_seconds,
        videos=[
            VideoItem(_video_file(run_dir, video.file, file), video.instruction, video.success, video.group, video.seed)
            for video in summary.videos
        ],
        origins=[Origin(summary.command, _text(run_dir / CONFIG_FILE), summary.versions)],
        warnings=read_warnings(run_dir / "train"),
    )
