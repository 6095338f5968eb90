"""The simulator's side of the wire: serve commands until the parent closes the socket."""

from __future__ import annotations

import importlib
import signal
import socket
import sys
import traceback
from typing import Any

from regrasp.envs.remote import protocol
from regrasp.envs.remote.simulator import Simulator


def main(descriptor: int) -> None:
    """Serve the parent at the other end of socket `descriptor`; returns when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=descriptor)
    try:
        _serve(sock)
    except (protocol.ConnectionClosedError, BrokenPipeError):
        sys.exit(0)


def _serve(sock: socket.socket) -> None:
    hello = protocol.receive(sock)
    if hello["version"] != protocol.VERSION:
        protocol.send(sock, {"error": f"protocol version {protocol.VERSION} here, {hello['version']} there"})
        return
    simulator: Simulator | None = None
    message = hello
    while message["op"] != "close":
        try:
            reply: dict[str, Any] = {"ok": True}
            if message["op"] == "hello":
                simulator = _create(message["factory"], message["settings"])
                reply["spec"] = simulator.describe().to_json()
            else:
                assert simulator is not None, "the first command is hello"
                _execute(sock, simulator, message)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        protocol.send(sock, reply)
        message = protocol.receive(sock)
    if simulator is not None:
        simulator.close()
    protocol.send(sock, {"ok": True})


def _create(factory: str, settings: dict[str, Any]) -> Simulator:
    module, name = factory.split(":")
    return getattr(importlib.import_module(module), name)(**settings)


def _execute(sock: socket.socket, simulator: Simulator, message: protocol.Message) -> None:
    match message["op"]:
        case "attach":
            simulator.attach(protocol.SharedArrays.receive_from(sock, message).arrays)
        case "reset":
            simulator.reset(message["rows"], message["seeds"])
        case "step":
            simulator.step(message["num_steps"])
        case "expert":
            simulator.expert()
        case "record":
            simulator.record(message["rows"], protocol.SharedArrays.receive_from(sock, message).arrays["frames"])
        case "stop_recording":
            simulator.record([], None)
        case "save_state":
            simulator.save_state()
        case "load_state":
            simulator.load_state()
        case unknown:
            raise ValueError(f"unknown command {unknown!r}")
