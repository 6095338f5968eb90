"""The parent's handle on one simulator process: start, call with a deadline, explain a failure, stop."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regrasp
from regrasp.envs.remote import protocol
from regrasp.envs.remote.simulator import SimulatorSpec, spec_from_json
from regrasp.errors import SimulatorError, UserError

_PACKAGE = Path(regrasp.__file__).parent
# Imports this very package by its path, so that another interpreter sees it without our other site-packages.
_BOOTSTRAP = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("regrasp", {init!r}, submodule_search_locations=[{package!r}])
sys.modules["regrasp"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from regrasp.envs.remote.child import main
main({descriptor})
"""
_TAIL_BYTES = 3000


@dataclass(frozen=True)
class Deadlines:
    """Seconds a simulator may take."""

    startup: float = 300.0
    reset: float = 120.0
    step: float = 120.0


class SimulatorProcess:
    """One child process that serves a `Simulator`.

    Args:
        name: Shown in errors, for example "train environments 0-63".
        factory: `module:callable` that creates the simulator inside the child.
        settings: JSON keyword arguments of the factory.
        deadlines: How long start, reset and step may take.
        python: The child's interpreter; None for ours.
        environment: Environment variables set for the child.
    """

    def __init__(
        self,
        name: str,
        factory: str,
        settings: Mapping[str, Any],
        deadlines: Deadlines,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.deadlines = deadlines
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._arrays: list[protocol.SharedArrays] = []
        self._busy_since: tuple[str, float] | None = None
        self._socket, theirs = socket.socketpair()
        self._process = self._spawn(python or sys.executable, theirs, environment or {})
        self._begin("hello", deadlines.startup, version=protocol.VERSION, factory=factory, settings=dict(settings))

    def _spawn(
        self, python: str, theirs: socket.socket, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        code = _BOOTSTRAP.format(
            init=str(_PACKAGE / "__init__.py"), package=str(_PACKAGE), descriptor=theirs.fileno()
        )
        try:
            return subprocess.Popen(  # noqa: S603 - the interpreter is the user's own choice
                [python, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f"The simulator's Python cannot be started: {error.strerror}",
                value=python,
                expected="the path of a Python interpreter",
                mend="set env.<train|eval>.python to the interpreter that has the simulator installed",
            ) from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def wait_until_ready(self) -> SimulatorSpec:
        """Wait for the simulator to start and return what it offers."""
        return spec_from_json(self.finish()["spec"])

    def attach(self, shapes: protocol.ArrayShapes) -> dict[str, Any]:
        """Share arrays of these shapes with the child and return our views of them."""
        return self._share({"op": "attach"}, shapes)

    def record(self, rows: list[int], shape: tuple[int, ...]) -> Any:
        """Ask for frames of `rows` in an array of `shape` (R, T, H, W, 3), which is returned."""
        return self._share({"op": "record", "rows": rows}, {"frames": (shape, "uint8")})["frames"]

    def _share(self, message: protocol.Message, shapes: protocol.ArrayShapes) -> dict[str, Any]:
        shared = protocol.SharedArrays.create(shapes)
        shared.send_to(self._socket, message)
        self._busy_since = (message["op"], time.monotonic() + self.deadlines.step)
        self.finish()
        self._arrays.append(shared)
        return shared.arrays

    def begin(self, op: str, **arguments: Any) -> None:
        """Send a command without waiting for the reply; `finish` waits."""
        self._begin(op, self.deadlines.reset if op == "reset" else self.deadlines.step, **arguments)

    def _begin(self, op: str, deadline: float, **arguments: Any) -> None:
        assert self._busy_since is None, "one command at a time"
        self._busy_since = (op, time.monotonic() + deadline)
        try:
            protocol.send(self._socket, {"op": op, **arguments})
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def finish(self) -> protocol.Message:
        """Wait for the reply to the last command.

        Raises:
            SimulatorError: The child failed, died, or was silent past the deadline.
        """
        assert self._busy_since is not None, "no command was begun"
        op, end = self._busy_since
        try:
            reply = protocol.receive(self._socket, max(0.0, end - time.monotonic()))
        except TimeoutError as error:
            self.kill()
            raise SimulatorError(
                f"{self.name} (process {self.pid}) did not answer '{op}' within its deadline.{self._tail()}"
            ) from error
        except protocol.ConnectionClosedError as error:
            raise self._death() from error
        self._busy_since = None
        if "error" in reply:
            raise SimulatorError(f"{self.name} failed in '{op}': {reply['error']}\n{reply.get('traceback', '')}")
        return reply

    def _death(self) -> SimulatorError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"exited with code {code}"
        return SimulatorError(f"{self.name} (process {self.pid}) {how}.{self._tail()}")

    def _tail(self) -> str:
        self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, self._output.tell() - _TAIL_BYTES))
        text = self._output.read().decode(errors="replace").strip()
        return f" It last said:\n{text}" if text else " It printed nothing."

    def request_close(self) -> None:
        """Ask the child to end; `close` waits for it."""
        if self._process.poll() is None and self._busy_since is None:
            try:
                protocol.send(self._socket, {"op": "close"})
            except (BrokenPipeError, ConnectionResetError):
                return

    def close(self, deadline: float) -> None:
        """Wait up to `deadline` seconds for the child to end, then kill it."""
        try:
            self._process.wait(timeout=max(0.0, deadline))
        except subprocess.TimeoutExpired:
            self.kill()
        self._socket.close()
        self._output.close()
        for shared in self._arrays:
            shared.close()
        self._arrays.clear()

    def kill(self) -> None:
        """End the child now."""
        self._process.kill()
        self._process.wait()
