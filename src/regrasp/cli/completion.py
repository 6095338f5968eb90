"""`regrasp completion`: what completes commands, flags, experiments and tasks in a shell."""

from __future__ import annotations

import argparse

import shtab

SHELLS = ("bash", "zsh")
_PREAMBLE = {
    "bash": """
_regrasp_experiments() {{ compgen -W "{experiments}" -- "$1"; compgen -f -X '!*.yaml' -- "$1"; }}
_regrasp_tasks() {{ compgen -W "{tasks}" -- "$1"; }}
""",
    "zsh": """
_regrasp_experiments() {{ compadd -- {experiments}; _files -g '*.yaml' }}
_regrasp_tasks() {{ compadd -- {tasks} }}
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("shell", choices=SHELLS, help="bash or zsh; what is printed goes where the shell reads it")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print(script(args.shell))
    return 0


def script(shell: str) -> str:
    """The completion script of a shell, for this version and the tasks and simulators that are installed."""
    from regrasp.cli.main import COMMANDS, create_parser
    from regrasp.config.search import list_configs
    from regrasp.envs.registry import EnvTypes
    from regrasp.experiment.shipped import experiments_of_tasks

    parser, commands = create_parser(COMMANDS)
    for command in commands.values():
        for action in command._actions:
            _complete_value(action)
    listed = [row.task_id for env_type in EnvTypes().values() for row in env_type.tasks(None, (), ())]
    names = {"experiments": list_configs(), "tasks": {*listed, *experiments_of_tasks()}}
    preamble = _PREAMBLE[shell].format(**{key: " ".join(sorted(values)) for key, values in names.items()})
    return shtab.complete(parser, shell, preamble=preamble)


def _complete_value(action: argparse.Action) -> None:
    """Say how the value of a flag is completed, where that is known."""
    by_flag = {"--config_name": "_regrasp_experiments", "--task": "_regrasp_tasks"}
    function = next((by_flag[flag] for flag in action.option_strings if flag in by_flag), None)
    if function is not None:
        action.complete = dict.fromkeys(SHELLS, function)  # pyright: ignore[reportAttributeAccessIssue]
    elif action.metavar in ("FOLDER", "DIR", "PATH"):
        action.complete = shtab.DIRECTORY  # pyright: ignore[reportAttributeAccessIssue]
