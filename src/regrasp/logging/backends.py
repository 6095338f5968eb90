"""Where metrics go besides the run's own file: TensorBoard, Weights & Biases, SwanLab."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from omegaconf import OmegaConf

from regrasp.errors import UserError
from regrasp.extras import install_command

_KEY = "runner.logger.logger_backends"


class Backend(Protocol):
    """Takes the scalars of a run."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record tag to value of one global step."""
        ...

    def forget_after(self, step: int) -> None:
        """Drop what was recorded of later steps."""
        ...

    def close(self) -> None:
        """Send what is left and end."""
        ...


def open_backends(
    names: Sequence[str], log_dir: Path, project: str, experiment: str, config_text: str
) -> list[Backend]:
    """Open the named backends; all names are checked before the first is opened.

    Raises:
        UserError: A name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in _BACKENDS:
            raise UserError("Unknown metrics backend.", key=_KEY, value=name, expected=f"any of {', '.join(_BACKENDS)}")
    return [_BACKENDS[name](log_dir, project, experiment, config_text) for name in names]


class _TensorBoard:
    def __init__(self, log_dir: Path, project: str, experiment: str, config_text: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._folder = str(log_dir / "tensorboard")
        self._writer = SummaryWriter(self._folder)
        self._writer.add_text("config", f"```yaml\n{config_text}\n```")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def forget_after(self, step: int) -> None:
        self._writer.close()
        self._writer = self._open(self._folder, purge_step=step + 1)

    def close(self) -> None:
        self._writer.close()


class _Service:
    """A package that is called as W&B's."""

    def __init__(self, package: str, **given: Any) -> None:
        self._package = _import_extra(package)
        self._package.init(**given)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._package.log(dict(scalars), step=step)

    def forget_after(self, step: int) -> None:
        """A resumed run is a new run of the service, which holds no later step."""

    def close(self) -> None:
        self._package.finish()


def _wandb(log_dir: Path, project: str, experiment: str, config_text: str) -> Backend:
    return _Service("wandb", project=project, name=experiment, dir=str(log_dir), config=_settings(config_text))


def _swanlab(log_dir: Path, project: str, experiment: str, config_text: str) -> Backend:
    folder = log_dir / "swanlab"
    folder.mkdir(exist_ok=True)
    config = _settings(config_text)
    return _Service("swanlab", project=project, experiment_name=experiment, logdir=str(folder), config=config)


def _settings(config_text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(config_text))


def _import_extra(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(
            f"The metrics backend {name} is not installed.",
            key=_KEY,
            value=name,
            fix=install_command(name),
        ) from error


_BACKENDS: Mapping[str, Callable[[Path, str, str, str], Backend]] = {
    "tensorboard": _TensorBoard,
    "wandb": _wandb,
    "swanlab": _swanlab,
}
