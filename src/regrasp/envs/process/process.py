"""The parent's handle on one simulator process: start, call with a deadline, explain a failure, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regrasp
from regrasp.envs.config import TimeoutsConfig
from regrasp.envs.process import protocol
from regrasp.envs.process.output import OutputTail
from regrasp.envs.process.simulator import SimulatorSpec, with_tuples
from regrasp.errors import SimulatorError, UserError

_PACKAGE = Path(regrasp.__file__).parent
# Imports this very package by its path, so that another interpreter sees it without our other site-packages.
_BOOTSTRAP = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("regrasp", {init!r}, submodule_search_locations=[{package!r}])
sys.modules["regrasp"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from regrasp.envs.process.child import main
main({descriptor}, {lifeline})
"""
_TAIL_BYTES = 3000

Shared = tuple[protocol.SharedArrays, slice]
"""Arrays, and the rows of them that a process is told of."""


class SimulatorProcess:
    """One child process that serves the environments of a `Simulator`.

    Args:
        name: Shown in errors, for example "train environments 0-63".
        factory: `module:callable` that creates the simulator inside the child.
        settings: JSON keyword arguments of the factory.
        timeouts: How long start, reset and step may take.
        python: The child's interpreter; None for ours.
        environment: Environment variables set for the child.
        ignore_terminations: Only the step limit ends an episode.
        python_key: Dotted path of the configuration key that names `python`, for errors.
        only_calls: The factory is called and creates nothing: `finish` then raises what it raised, and the child can
            only be closed.
    """

    def __init__(
        self,
        name: str,
        factory: str,
        settings: Mapping[str, Any],
        timeouts: TimeoutsConfig,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        ignore_terminations: bool = False,
        python_key: str | None = None,
        only_calls: bool = False,
    ) -> None:
        self.name = name
        self._python_key = python_key
        self._timeouts = timeouts
        self._output = OutputTail()
        self._awaited: tuple[str, float] | None = None
        self._socket, theirs = socket.socketpair()
        their_lifeline, ours = os.pipe()
        self._lifeline = os.fdopen(ours, "wb", 0)
        try:
            self._process = self._spawn(python or sys.executable, theirs.fileno(), their_lifeline, environment or {})
        finally:
            theirs.close()
            os.close(their_lifeline)
        arguments = {"factory": factory, "settings": dict(settings)}
        if not only_calls:
            arguments["ignore_terminations"] = ignore_terminations
        self._send("call" if only_calls else "hello", timeouts.startup_s, None, arguments, version=protocol.VERSION)

    def _spawn(
        self, python: str, descriptor: int, lifeline: int, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        code = _BOOTSTRAP.format(
            init=str(_PACKAGE / "__init__.py"), package=str(_PACKAGE), descriptor=descriptor, lifeline=lifeline
        )
        try:
            return subprocess.Popen(
                [python, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=self._output.fileno(),
                stderr=subprocess.STDOUT,
                pass_fds=[descriptor, lifeline],
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f"The simulator's Python cannot be started: {error.strerror}",
                key=self._python_key,
                value=python,
                expected="the path of a Python interpreter",
                fix="name the interpreter that has the simulator installed: for Isaac Lab env.isaaclab.python, which"
                " holds for training and evaluation, otherwise env.<train|eval>.python",
            ) from error

    def fileno(self) -> int:
        """The command socket, so that replies of several processes can be waited for together."""
        return self._socket.fileno()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def wait_until_ready(self) -> SimulatorSpec:
        """Wait for the simulator to start and return what it offers."""
        return SimulatorSpec(**with_tuples(self.finish()["spec"]))

    def begin(self, op: str, shared: Shared | None = None, **arguments: Any) -> None:
        """Send a command, with the rows of arrays that it is about, without waiting for the reply; `finish` waits."""
        self._send(op, self._timeouts.reset_s if op == "reset" else self._timeouts.step_s, shared, arguments)

    def _send(self, op: str, deadline: float, shared: Shared | None, arguments: dict[str, Any], **fields: Any) -> None:
        if self._awaited is not None:
            raise SimulatorError(f"{self.name} (process {self.pid}) was left in '{self._awaited[0]}' by a failure.")
        self._awaited = (op, time.monotonic() + deadline)
        message = {"op": op, "arguments": arguments, **fields}
        try:
            if shared is None:
                protocol.send(self._socket, message)
            else:
                shared[0].send_to(self._socket, message, shared[1])
        except (BrokenPipeError, ConnectionResetError) as error:
            self._awaited = None
            raise self._death() from error

    @property
    def seconds_left(self) -> float:
        """How long the last command may still take."""
        return max(0.0, self._awaited[1] - time.monotonic()) if self._awaited else 0.0

    def finish(self) -> protocol.Message:
        """Wait for the reply to the last command.

        Raises:
            SimulatorError: The child failed, died, or was silent past the deadline.
            UserError: The child found a mistake of the user's.
        """
        assert self._awaited is not None, "no command was begun"
        (op, _), seconds_left, self._awaited = self._awaited, self.seconds_left, None
        try:
            reply = protocol.receive(self._socket, seconds_left)
        except TimeoutError as error:
            self.kill()
            raise SimulatorError(
                f"{self.name} (process {self.pid}) did not answer '{op}' within its deadline.{self._tail()}"
            ) from error
        except protocol.ConnectionClosedError as error:
            raise self._death() from error
        self._output.trim()
        if "user_error" in reply:
            raise UserError(**reply["user_error"])
        if "error" in reply:
            raise SimulatorError(f"{self.name} failed in '{op}': {reply['error']}\n{reply.get('traceback', '')}")
        return reply

    def _death(self) -> SimulatorError:
        try:
            code = self._process.wait(timeout=5)
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        except subprocess.TimeoutExpired:
            self.kill()
            how = "closed its connection"
        return SimulatorError(f"{self.name} (process {self.pid}) {how}.{self._tail()}")

    def _tail(self) -> str:
        text = self._output.text(_TAIL_BYTES)
        return f" It last said:\n{text}" if text else " It printed nothing."

    def request_close(self) -> None:
        """Ask the child to end, after what it is doing; `close` waits for it."""
        if self._process.poll() is None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                protocol.send(self._socket, {"op": "close"})

    def close(self, deadline: float) -> None:
        """Wait up to `deadline` seconds for the child to end, then kill it."""
        try:
            self._process.wait(timeout=max(0.0, deadline))
        except subprocess.TimeoutExpired:
            self.kill()
        self._socket.close()
        self._output.close()
        self._lifeline.close()

    def kill(self) -> None:
        """End the child, and the processes that it started, now."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
