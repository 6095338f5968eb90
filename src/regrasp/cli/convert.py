"""`regrasp convert`: Isaac Lab's recordings as a dataset that `regrasp sft` trains on."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regrasp.cli.common import STAGE_INTERRUPTED, add_config_arguments, load, print_resolved, warn_of_idle
from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.experiment.load import LoadedConfig

_log = logging.getLogger(__name__)

INTERRUPTED = STAGE_INTERRUPTED

_OVERRIDE = re.compile(r"[+~]{0,2}[\w.@/-]+=.*|~[\w.]+", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="recordings (.hdf5) of Isaac Lab")
    add_config_arguments(parser)
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="dataset folder; default: collect.output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that is there")
    parser.add_argument("--keep_failed", action="store_true", help="convert episodes without success too")
    parser.add_argument("--fps", metavar="N", type=int, help="steps per second; default: as the recordings say")


def run(args: argparse.Namespace) -> int:
    """Write a dataset."""
    files, args.overrides = split_positionals([*args.files, *args.overrides])
    warn_of_idle(args, ["num_envs", "seed"], "this stage starts no environments and draws no numbers")
    loaded = load(args)
    if files or not args.dry_run:
        _check(files, args.fps)
    if args.dry_run:
        _rehearse(args, loaded, files)
        return 0
    from regrasp.stages.convert import convert, omission_lines

    folder, report = convert(
        loaded.config, files, args.output, fps=args.fps, keep_failed=args.keep_failed, overwrite=args.overwrite
    )
    for line in omission_lines(report.omissions):
        print(f"Left out: {line}")
    print(
        f"Demonstrations: {folder.resolve()} ({len(report.episodes)} of {report.num_recorded} recorded episodes,"
        f" {report.num_frames} frames at {report.fps} Hz)"
    )
    return 0


def _rehearse(args: argparse.Namespace, loaded: LoadedConfig, files: Sequence[Path]) -> None:
    """What `--dry_run` shows: every value, and which episodes of the recordings would be taken."""
    lines: list[str] = []
    if files:
        from regrasp.stages.convert import check_output, omission_lines, survey

        check_output(loaded.config, args.output, overwrite=args.overwrite)
        with contextlib.redirect_stdout(sys.stderr):  # what is printed can be read as YAML
            chosen = survey(loaded.config, files, fps=args.fps, keep_failed=args.keep_failed)
        for warning in chosen.warnings:
            _log.warning(warning)
        lines = [f"Left out: {line}" for line in omission_lines(chosen.omissions)]
        lines.append(
            f"Would take {len(chosen.episodes)} of {chosen.num_recorded} recorded episodes"
            f" ({chosen.num_frames} frames at {chosen.fps} Hz); their arrays are read while converting."
        )
    print_resolved(loaded, lines)


def split_positionals(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Recordings and Hydra overrides, which argparse cannot tell apart."""
    overrides = [text for text in given if _OVERRIDE.fullmatch(text) and not Path(text).is_file()]
    return [Path(text) for text in given if text not in overrides], overrides


def _check(files: Sequence[Path], fps: int | None) -> None:
    if not files:
        raise UserError(
            "No recording is given",
            key="FILE",
            expected="one or more .hdf5 files that Isaac Lab's recorder wrote",
            fix="name them: regrasp convert demos.hdf5 --config_name ...",
        )
    if fps is not None and fps < 1:
        raise UserError("No step rate", key="--fps", value=fps, expected="at least 1", fix="correct it")
