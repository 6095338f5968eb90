"""Where metrics go besides the run's own file: TensorBoard, Weights & Biases, SwanLab."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Protocol

import psutil
from omegaconf import OmegaConf

from regrasp.errors import UserError
from regrasp.extras import install_command
from regrasp.folders import append

_log = logging.getLogger(__name__)
_KEY = "runner.logger.logger_backends"
_SWANLAB = "https://api.swanlab.cn"
_FINISH_SECONDS = 60.0
"""Longest wait for a service to send what is left at the end of a run."""
_REACH_SECONDS = 8.0
"""Longest wait for the first answer of a service."""


@dataclass(frozen=True)
class TrackedRun:
    """How a run is known to the services that receive its metrics."""

    folder: Path
    """Its name is the run's."""
    project: str
    experiment: str
    """Runs of one experiment are a group."""
    tracking_id: str
    """A run that goes on under the same one is continued."""
    config_text: str
    """The resolved configuration as YAML."""

    @property
    def settings(self) -> Any:
        """The resolved configuration as plain values."""
        return OmegaConf.to_container(OmegaConf.create(self.config_text))


class Backend(Protocol):
    """Takes the scalars of a run."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record tag to value of one global step; of a step that failed, everything is given again."""
        ...

    def forget_after(self, step: int) -> None:
        """Drop what was recorded of later steps."""
        ...

    def close(self) -> None:
        """Send what is left and end."""
        ...


Opener = Callable[[TrackedRun], Backend]


def prepare_backends(names: Sequence[str]) -> dict[str, Opener]:
    """Look, before a simulator starts, for what the named backends need; a service out of reach is left for later.

    Raises:
        UserError: A name is unknown, its package is not installed, or its service does not know the user.
    """
    check_installed(names)
    return {name: _BACKENDS[name]() for name in names}


def check_installed(names: Sequence[str]) -> None:
    """Import the packages of the named backends.

    Raises:
        UserError: A name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in _BACKENDS:
            raise UserError("Unknown metrics backend.", key=_KEY, value=name, expected=f"any of {', '.join(_BACKENDS)}")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise UserError(
                f"The metrics backend {name} is not installed.", key=_KEY, value=name, fix=install_command(name)
            ) from error


class _TensorBoard:
    """One file of events, begun again where it is gone."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._file: BinaryIO | None = None

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(step=step, summary=Summary(value=values))

    def forget_after(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, **content: Any) -> None:
        if self._file is None or not Path(self._file.name).exists():
            self._begin()
        assert self._file is not None
        append(self._file, _event(**content))

    def _begin(self) -> None:
        from torch.utils.tensorboard.summary import text

        self.close()
        self._file = None
        folder = self._run.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        begun = (folder / f"events.out.tfevents.{time.time_ns()}").open("ab", buffering=0)
        config = text("config", f"```yaml\n{self._run.config_text}\n```")
        append(begun, _event(file_version="brain.Event:2") + _event(summary=config))
        self._file = begun


def _event(**content: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
    return record.getvalue()


class _Service:
    """A package that is called as W&B's."""

    def __init__(self, package: ModuleType, helpers: set[psutil.Process], **given: Any) -> None:
        self._package = package
        self._helpers = helpers
        """The processes that send; the package waits for them again when this process ends."""
        with _noting_children(helpers):
            self._package.init(**given)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._package.log(dict(scalars), step=step)

    def forget_after(self, step: int) -> None:
        """A service keeps what it was sent first."""

    def close(self) -> None:
        """Have it send what is left.

        Raises:
            TimeoutError: That takes too long; what it started has been ended, so that nothing waits for it any more.
        """
        finished: Future[None] = Future()

        def finish() -> None:
            try:
                finished.set_result(self._package.finish())
            except BaseException as error:
                finished.set_exception(error)

        threading.Thread(target=finish, daemon=True).start()
        try:
            finished.result(_FINISH_SECONDS)
        except TimeoutError:
            for helper in self._helpers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    helper.kill()
            raise TimeoutError(f"it did not end within {_FINISH_SECONDS:.0f} seconds") from None


@contextlib.contextmanager
def _noting_children(helpers: set[psutil.Process]) -> Iterator[None]:
    """Add to `helpers` the processes that the block starts."""
    before = set(psutil.Process().children(recursive=True))
    yield
    helpers |= set(psutil.Process().children(recursive=True)) - before


def _wandb() -> Opener:
    wandb = importlib.import_module("wandb")
    helpers: set[psutil.Process] = set()
    with _noting_children(helpers):
        settings = wandb.setup().settings
    mode = settings.mode
    if mode in ("online", "shared"):
        _log_in(wandb, verify=False)
        if _answers(settings.base_url):
            _log_in(wandb, verify=True)
        else:
            mode = "offline"
            _log.warning(
                "W&B (%s) does not answer. The run is recorded in its folder instead; `wandb sync` sends it later.",
                settings.base_url,
            )

    def open_run(run: TrackedRun) -> Backend:
        return _Service(
            wandb,
            helpers,
            project=run.project,
            group=run.experiment,
            name=run.folder.name,
            id=run.tracking_id,
            resume="allow",
            dir=str(run.folder),
            config=run.settings,
            mode=mode,
        )

    return open_run


def _log_in(wandb: ModuleType, *, verify: bool) -> None:
    """Have W&B look for the user's key, for which it asks at a terminal, and ask its server about it with `verify`.

    Raises:
        UserError: There is none, or it is wrong.
    """
    try:
        known = wandb.login(verify=verify)
    except wandb.Error as error:
        raise _not_logged_in(str(error)) from error
    if not known:
        raise _not_logged_in("no API key is configured")


def _not_logged_in(reason: str) -> UserError:
    return UserError(
        f"W&B does not know you: {reason.rstrip('.')}",
        key=_KEY,
        value="wandb",
        expected="a key that `wandb login` has stored, or WANDB_API_KEY",
        fix="run `wandb login`; or set WANDB_MODE=offline, to record the run here and send it later with `wandb sync`",
    )


def _answers(url: str) -> bool:
    """Whether anything answers at an address, asked as the user's proxies say."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=_REACH_SECONDS):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            return

    asking = threading.Thread(target=ask, daemon=True)  # finding the name has no deadline of its own
    asking.start()
    asking.join(_REACH_SECONDS)
    return answered.is_set()


def _swanlab() -> Opener:
    swanlab = importlib.import_module("swanlab")
    mode = os.environ.get("SWANLAB_MODE", "online")
    if mode in ("online", "cloud"):
        address = os.environ.get("SWANLAB_API_HOST", _SWANLAB)
        if _answers(address):
            _log_in_to_swanlab(swanlab)
        else:
            mode = "offline"
            _log.warning(
                "SwanLab (%s) does not answer. The run is recorded in its folder; `swanlab sync` sends it.",
                address,
            )

    def open_run(run: TrackedRun) -> Backend:
        folder = run.folder / "swanlab"
        folder.mkdir(exist_ok=True)
        return _Service(
            swanlab,
            set(),
            project=run.project,
            experiment_name=run.folder.name,
            logdir=str(folder),
            config=run.settings,
            mode=mode,
            **({"id": run.tracking_id, "resume": "allow"} if mode in ("online", "cloud") else {}),
        )

    return open_run


def _log_in_to_swanlab(swanlab: ModuleType) -> None:
    """Have SwanLab look for the user's key, for which it asks at a terminal, and ask its server about it.

    Raises:
        UserError: There is none, or it is wrong.
    """
    try:
        swanlab.login()
    except (Exception, SystemExit) as error:  # its versions differ in what they raise
        raise UserError(
            f"SwanLab does not know you: {str(error).rstrip('.') or type(error).__name__}",
            key=_KEY,
            value="swanlab",
            expected="a key that `swanlab login` has stored, or SWANLAB_API_KEY",
            fix="run `swanlab login`; or set SWANLAB_MODE=offline, to record the run here and send it later",
        ) from error


_BACKENDS: Mapping[str, Callable[[], Opener]] = {
    "tensorboard": lambda: _TensorBoard,
    "wandb": _wandb,
    "swanlab": _swanlab,
}
