"""The simulator's side of the wire: serve commands until the parent closes the socket."""

from __future__ import annotations

import fcntl
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from dataclasses import asdict
from typing import Any

from regrasp.envs.chunk import COMMANDS, ChunkRunner
from regrasp.envs.process import protocol
from regrasp.errors import UserError


def main(descriptor: int, lifeline: int) -> None:
    """Serve the parent at the other end of socket `descriptor`; returns when it is gone.

    Args:
        descriptor: The command socket.
        lifeline: Read end of a pipe that the parent never writes to; its closing means that the parent is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(lifeline)
    sock = socket.socket(fileno=descriptor)
    try:
        _serve(sock)
    except (protocol.ConnectionClosedError, BrokenPipeError):
        sys.exit(0)


def _die_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process group when the parent is gone, even within a long native call.

    Elsewhere than on Linux the command socket's end is noticed when the simulator next waits for a command. Linux's
    PR_SET_PDEATHSIG would not do: it fires when the parent's thread ends that started this process.
    """
    if sys.platform != "linux":
        return
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    already_gone, _, _ = select.select([lifeline], [], [], 0)
    if already_gone:
        sys.exit(0)


def _serve(sock: socket.socket) -> None:
    hello = protocol.receive(sock)
    if hello["version"] != protocol.VERSION:
        protocol.send(sock, {"error": f"protocol version {protocol.VERSION} here, {hello['version']} there"})
        return
    runner: ChunkRunner | None = None
    message = hello
    while message["op"] != "close":
        try:
            reply: dict[str, Any] = {"ok": True}
            if message["op"] == "hello":
                runner = _create(**message["arguments"])
                reply["spec"] = asdict(runner.describe())
            elif message["op"] == "call":
                _call(**message["arguments"])
            else:
                assert runner is not None, "the first command is hello"
                _execute(sock, runner, message)
        except UserError as error:
            reply = {"user_error": error.fields()}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        protocol.send(sock, reply)
        message = protocol.receive(sock)
    if runner is not None:
        runner.close()
    protocol.send(sock, {"ok": True})


def _create(factory: str, settings: dict[str, Any], *, ignore_terminations: bool) -> ChunkRunner:
    return ChunkRunner(_call(factory, settings), settings["num_envs"], ignore_terminations=ignore_terminations)


def _call(factory: str, settings: dict[str, Any]) -> Any:
    module, name = factory.split(":")
    return getattr(importlib.import_module(module), name)(**settings)


def _execute(sock: socket.socket, runner: ChunkRunner, message: protocol.Message) -> None:
    """Call the method of the command's name, with the arrays that came along if any did."""
    assert message["op"] in COMMANDS, message["op"]
    arrays = {"arrays": protocol.SharedArrays.receive_from(sock, message)} if "shapes" in message else {}
    getattr(runner, message["op"])(**message["arguments"], **arrays)
