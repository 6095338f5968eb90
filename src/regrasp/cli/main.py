"""`regrasp <command>`."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import NoReturn

import regrasp
from regrasp.errors import RegraspError, UserError

COMMANDS = {
    "quickstart": "all stages on the embedded simulator, with a report at the end",
    "pretrain": "stage 0: pretrain the tiny vision-language backbone",
    "collect": "stage 1: record demonstrations with a scripted expert",
    "convert": "stage 1 from recordings: make a dataset of Isaac Lab's HDF5 files",
    "sft": "stage 2: train a base model on demonstrations",
    "train": "stage 3: fine-tune a model with reinforcement learning",
    "distill": "teach a plain model what a residual or learned noise does",
    "play": "evaluate a model, with intervals and video",
    "export": "write a fine-tuned model in its published layout",
    "push": "upload a model or a dataset to the Hugging Face hub",
    "report": "write the report page of a run",
    "watch": "serve a page about a run while it goes on",
    "compare": "write one page about several runs, side by side",
    "doctor": "say what this machine can run",
    "tasks": "list the known tasks",
    "completion": "print what completes commands and flags in a shell",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a user's mistake gives 2 and no traceback."""
    # What a shell passes is UTF-8, whatever the locale makes of it.
    given = [os.fsencode(text).decode(errors="replace") for text in sys.argv[1:]] if arguments is None else [*arguments]
    parser, commands = create_parser(given[:1])
    if not given:
        parser.print_help()
        return 0
    if not given[0].startswith("-") and given[0] not in COMMANDS:
        known = f"choose from {', '.join(COMMANDS)}"
        parser.error(f"argument command: invalid choice: {given[0]!r} ({_close(given[0], COMMANDS) or known})")
    parsed, rest = parser.parse_known_args(given)
    # argparse takes the overrides before or after the flags, not both: those after a later flag are left over.
    if any(text.startswith("-") for text in rest) or (rest and not hasattr(parsed, "overrides")):
        _unrecognized(commands[parsed.command], rest)
    if rest:
        parsed.overrides += rest
    parsed.given = given
    from regrasp.cli.console import log_to_console  # not for `--help`, which is to be there at once

    log_to_console()
    try:
        return _run(parsed)
    except RegraspError as error:
        from regrasp.cli.console import print_error

        print_error(error, parsed)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"\nerror: This path is too long for the file system: {error.filename}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        kept = getattr(_module(parsed.command), "INTERRUPTED", "")
        print(f"\ninterrupted\n{kept}".rstrip("\n"), file=sys.stderr)
        return 130


def _run(parsed: argparse.Namespace) -> int:
    if getattr(parsed, "multirun", False):
        from regrasp.cli.sweep import sweep

        return sweep(parsed)
    return _module(parsed.command).run(parsed)


def create_parser(
    with_flags: Collection[str],
) -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of the command line, and that of each command.

    Args:
        with_flags: Commands whose flags are to be there; their modules are imported.
    """
    parser = argparse.ArgumentParser(prog="regrasp", description=regrasp.__doc__)
    parser.add_argument("--version", action="version", version=f"regrasp {regrasp.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name in with_flags:
            _module(name).add_arguments(subparser)
    return parser, commands.choices


def _unrecognized(parser: argparse.ArgumentParser, rest: Sequence[str]) -> NoReturn:
    """Refuse flags that the command does not have, with the nearest one that it has."""
    flags = [name for action in parser._actions for name in action.option_strings]
    wrong = next((text.partition("=")[0] for text in rest if text.startswith("-")), rest[0])
    keys = _keys_called(wrong.lstrip("-"), parser.prog.split()[-1]) if "--config_name" in flags else []
    close = f"did you mean {' or '.join(f'{key}=...' for key in keys)}?" if keys else _close(wrong, flags)
    parser.error(f"unrecognized arguments: {' '.join(rest)}" + (f" ({close})" if close else ""))


def _keys_called(name: str, command: str) -> list[str]:
    """The configuration keys of a name; those of the command's own block, else those of no stage before training."""
    from regrasp.config.describe import Spec, dotted
    from regrasp.experiment import ExperimentConfig

    paths = [path for path in Spec(ExperimentConfig).paths() if path[-1] == name]
    own = [path for path in paths if path[0] == command]
    rest = [path for path in paths if path[0] not in ("pretrain", "collect", "sft")]
    return [dotted(path) for path in own or rest or paths][:3]


def _close(text: str, known: Iterable[str]) -> str:
    """A question about the nearest known word; empty where none is near."""
    near = get_close_matches(text, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def _module(command: str):
    return importlib.import_module(f"regrasp.cli.{command}")
