"""`regrasp <command>`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import regrasp
from regrasp.errors import RegraspError

COMMANDS = {
    "quickstart": "all stages on the embedded simulator, with a report at the end",
    "pretrain": "stage 0: pretrain the tiny vision-language backbone",
    "collect": "stage 1: record demonstrations with a scripted expert",
    "sft": "stage 2: train a base model on demonstrations",
    "train": "stage 3: fine-tune a model with reinforcement learning",
    "play": "evaluate a model, with intervals and video",
    "export": "write a fine-tuned GR00T in its published layout",
    "report": "write the report page of a run",
    "doctor": "say what this machine can run",
    "tasks": "list the known tasks",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a user's mistake gives 2 and no traceback."""
    parser = argparse.ArgumentParser(prog="regrasp", description=regrasp.__doc__)
    parser.add_argument("--version", action="version", version=f"regrasp {regrasp.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if given[:1] == [name]:
            _module(name).add_arguments(subparser)
    parsed, rest = parser.parse_known_args(given)
    # argparse takes the overrides before or after the flags, not both: those after a later flag are left over.
    if any(text.startswith("-") for text in rest) or (rest and not hasattr(parsed, "overrides")):
        commands.choices[parsed.command].error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    try:
        return _module(parsed.command).run(parsed)
    except RegraspError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`regrasp tasks | head -1`); a simulator's pipe has errors of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _module(command: str):
    return importlib.import_module(f"regrasp.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
