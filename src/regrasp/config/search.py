"""Finding an experiment's configuration file by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from regrasp.config.sources import COMMAND_LINE
from regrasp.errors import UserError

Folders = Callable[[], Iterable[Path]]
SHIPPED = Path(__file__).resolve().parent.parent / "configs"
"""Folder of the experiments that come with Regrasp."""
_EXPERIMENT = re.compile(r"^(env|actor|defaults):", re.MULTILINE)


def find_config(name: str, config_path: Path | None = None, more: Folders = tuple) -> Path:
    """The file of an experiment.

    Args:
        name: Name of the experiment (the file's name without `.yaml`), or the path of a YAML file.
        config_path: Folder that is searched first.
        more: Further folders, whose experiments lie in folders of their own beside the tasks; searched last.

    Searched in this order: `config_path`, the experiments that come with Regrasp, the further folders.

    Raises:
        UserError: No such experiment, several in one place, or `config_path` is no folder.
    """
    if config_path is not None and not config_path.is_dir():
        raise UserError(
            "The configuration folder does not exist.",
            file=COMMAND_LINE,
            key="--config_path",
            value=str(config_path),
            expected="an existing folder with YAML files",
            fix="correct the path; a single file is given as --config_name /path/to/file.yaml",
        )
    if not name or Path(name).suffix in (".yaml", ".yml") or "/" in name:
        return _by_path(name, config_path, more)
    for folder, files in _searched(config_path, more):
        found = [file for file in files if file.stem == name]
        if len(found) > 1:
            raise UserError(
                f"Several configurations are called {name}: {', '.join(map(str, found))}",
                file=folder,
                key="--config_name",
                value=name,
                expected="one file of that name",
                fix=f"give the path: --config_name {found[0]}",
            )
        if found:
            return found[0]
    raise _unknown(name, config_path, more)


def settled(file: Path) -> Path:
    """The absolute path of an experiment's file, symbolic links followed as far as it stays a YAML file.

    The Hugging Face hub's cache links the files of a model's folder to others that are named by their content, which
    Hydra would not read.
    """
    target = file.resolve()
    return target if target.suffix == file.suffix else file.parent.resolve() / file.name


def list_configs(config_path: Path | None = None, more: Folders = tuple) -> dict[str, Path]:
    """Every experiment that `find_config` can find, by name; earlier folders win."""
    configs: dict[str, Path] = {}
    for folder, files in _searched(config_path, more):
        for file in files:
            if folder == SHIPPED or _EXPERIMENT.search(file.read_text(encoding="utf-8", errors="replace")):
                configs.setdefault(file.stem, file)
    return configs


def _by_path(name: str, config_path: Path | None, more: Folders) -> Path:
    for folder in filter(None, (config_path, Path(), SHIPPED)):
        file = folder / Path(name).expanduser()
        for path in (file, file.with_name(f"{file.name}.yaml")) if file.name else ():
            if path.is_file() and path.suffix == ".yaml":
                return settled(path)
    if Path(name).suffix in (".yaml", ".yml"):
        raise _no_file(name, config_path, more)
    raise _unknown(name, config_path, more)


def _no_file(name: str, config_path: Path | None, more: Folders) -> UserError:
    """The error for a path of a YAML file that is not there."""
    stem = Path(name).stem
    fix = "correct the path: it counts from the working directory, or from --config_path"
    if stem in list_configs(config_path, more):
        fix = f"an experiment that comes with Regrasp, or is in --config_path, is given by its name: {stem}"
    elif Path(name).expanduser().is_file():
        fix = f"rename it to {Path(name).with_suffix('.yaml')}, which is what Hydra reads"
    folders = ", ".join(str(folder.resolve()) for folder in filter(None, (config_path, Path(), SHIPPED)))
    return UserError(
        "There is no such configuration file",
        file=COMMAND_LINE,
        key="--config_name",
        value=name,
        expected=f"the path of a .yaml file (looked for in: {folders}), or the name of an experiment",
        fix=fix,
    )


def _searched(config_path: Path | None, more: Folders) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder in the order of search, with its YAML files."""
    for folder in (config_path.resolve(), SHIPPED) if config_path else (SHIPPED,):
        yield folder, sorted(folder.glob("*.yaml"))
    for folder in dict.fromkeys(more()):
        yield folder, sorted(folder.rglob("*.yaml"))


def _unknown(name: str, config_path: Path | None, more: Folders) -> UserError:
    known = sorted(list_configs(config_path, more))
    close = get_close_matches(Path(name).stem, known, n=1)
    searched = ", ".join(str(folder) for folder, _ in _searched(config_path, more))
    return UserError(
        f"No configuration is called {name!r}.",
        file=COMMAND_LINE,
        key="--config_name",
        value=name,
        expected=f"the path of a .yaml file, or one of {', '.join(known)} (searched: {searched})",
        fix=f"did you mean {close[0]}?" if close else "give one of these names, or a folder with --config_path",
    )
