"""`--multirun`: a command for every combination of the values that overrides list, one run after the other."""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from regrasp.cli.common import load
from regrasp.cli.console import print_error
from regrasp.errors import RegraspError, UserError
from regrasp.folders import CONFIG_FILE, new_folder, require_writable

_log = logging.getLogger(__name__)
_KEY = "runner.logger.log_path"
_INTERRUPTED = 130


@dataclass(frozen=True)
class _Job:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    """All of them, each with one value."""
    name: str
    """Those that the sweep varies."""


def sweep(args: argparse.Namespace) -> int:
    """Run the command once for every combination, and print a table; a run that fails does not keep others from theirs.

    Args:
        args: The parsed command, whose overrides list values as Hydra's do: `actor.optim.lr=1e-4,3e-4`.

    Returns:
        The exit code: of the first run that failed, else 0.

    Raises:
        UserError: A combination is refused before any run starts.
    """
    jobs = _jobs(args.overrides)
    root = None if args.dry_run else _check(args, jobs)
    commands = [[args.command, *_without(args.given, args.overrides), *job.overrides] for job in jobs]
    _log.info("A sweep of %d runs:", len(jobs))
    for command in commands:
        print("  " + shlex.join(["regrasp", *command]))
    if root is None:
        return _rehearse(args, jobs)
    require_writable(root, key=_KEY)
    folder = new_folder(root / f"multirun-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
    _log.info("Logging to: %s", folder.resolve())
    codes: list[int] = []
    runs: list[Path | None] = []
    for number, (job, command) in enumerate(zip(jobs, commands, strict=True), start=1):
        print(f"\n== {number} of {len(jobs)}: {job.name}", flush=True)
        before = set(_runs_in(folder))
        codes.append(_run([*command, f"{_KEY}={folder}"]))
        runs.append(next((run for run in _runs_in(folder) if run not in before), None))
        if codes[-1] == _INTERRUPTED:
            break
    _report(folder, jobs, codes, runs)
    return next((code for code in codes if code), 0)


def _jobs(overrides: Sequence[str]) -> list[_Job]:
    """Every combination, the last listed override varying fastest.

    Raises:
        UserError: An override cannot be read, or none lists several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"An override cannot be read: {problem}", file="command line", expected="key=value") from error
    lists = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in parsed
    ]
    if all(len(values) == 1 for values in lists):
        raise UserError(
            "Nothing is varied",
            key="--multirun",
            expected="an override with several values, such as actor.optim.lr=1e-4,3e-4 or runner.seed=range(0,3)",
            fix="list values, or leave --multirun out",
        )
    varied = [number for number, values in enumerate(lists) if len(values) > 1]
    return [_Job(chosen, " ".join(chosen[number] for number in varied)) for chosen in itertools.product(*lists)]


def _rehearse(args: argparse.Namespace, jobs: Sequence[_Job]) -> int:
    """A dry run of every combination, of which the first shows every value; returns the first exit code that is not 0.

    Args:
        args: The parsed command.
        jobs: The combinations.
    """
    run = importlib.import_module(f"regrasp.cli.{args.command}").run
    codes: list[int] = []
    for number, job in enumerate(jobs, start=1):
        print(f"\n== {number} of {len(jobs)}: {job.name}", flush=True)
        one = copy.copy(args)
        one.overrides, one.brief = list(job.overrides), number > 1
        try:
            codes.append(run(one))
        except RegraspError as error:
            print_error(error, one)
            codes.append(error.exit_code)
    refused = [job.name for job, code in zip(jobs, codes, strict=True) if code]
    if refused:
        print(f"\n{len(refused)} of {len(jobs)} runs would be refused:", *refused, sep="\n  ", file=sys.stderr)
    return next((code for code in codes if code), 0)


def _check(args: argparse.Namespace, jobs: Sequence[_Job]) -> Path:
    """Load every combination, so that a mistake is found before the first run, and say where they write."""
    root: Path | None = None
    for job in jobs:
        one = copy.copy(args)
        one.overrides = list(job.overrides)
        loaded = load(one, trains=args.command == "train")
        root = root or Path(loaded.config.runner.logger.log_path or Path("logs") / "regrasp")
    assert root is not None
    return root


def _without(given: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The flags of a command line, without its name, its overrides and what asks for a sweep."""
    left = list(overrides)
    flags: list[str] = []
    for text in given[1:]:
        if text in left:
            left.remove(text)
        elif text not in ("-m", "--multirun"):
            flags.append(text)
    return flags


def _run(command: Sequence[str]) -> int:
    """Run a command in a process of its own; Ctrl-C reaches it, and it says itself what it kept."""
    process = subprocess.Popen([sys.executable, "-m", "regrasp", *command])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _runs_in(folder: Path) -> list[Path]:
    return sorted({file.parent for pattern in ("*", "eval/*") for file in folder.glob(f"{pattern}/{CONFIG_FILE}")})


def _report(folder: Path, jobs: Sequence[_Job], codes: Sequence[int], runs: Sequence[Path | None]) -> None:
    """The table, and the page where there are runs to compare."""
    from regrasp.cli.tables import print_runs
    from regrasp.stages.compare import compare_runs, read_runs

    shown = [(job.name, run) for job, run in zip(jobs, runs, strict=False) if run is not None]
    found: list[Path] = []
    print()
    for (name, run), one in [((name, run), _readable(run)) for name, run in shown]:
        if one:
            found.append(run)
        else:
            print(f"{name}: {run} has no result")
    names = {run: name for name, run in shown}
    print_runs([replace(one, name=names[run]) for run, one in zip(found, read_runs(found), strict=True)])
    for job, code in zip(jobs, codes, strict=False):
        if code:
            print(f"{job.name}: exit code {code}")
    if len(found) > 1:
        page = folder / "compare.html"
        compare_runs(found, page)
        print(f"Page: {page.resolve()}")


def _readable(run: Path) -> bool:
    from regrasp.stages.report import run_data

    try:
        run_data(run)
    except UserError:
        return False
    return True
