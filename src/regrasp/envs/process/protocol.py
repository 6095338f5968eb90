"""The wire between Regrasp and a simulator's process.

Commands and replies are JSON objects, each preceded by its length in four bytes. Arrays never travel: both sides map
the same anonymous file, whose descriptor is passed over the socket once. Imports only the standard library and NumPy,
since the child side may run under a simulator's own Python.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import socket
import struct
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from regrasp.envs.process.simulator import ArraySpec
from regrasp.errors import UserError

VERSION = 1
SHARED_MEMORY = Path("/dev/shm")
"""Where shared arrays lie, on Linux."""
_HEADER = struct.Struct("!I")
_ALIGNMENT = 64

Message = dict[str, Any]


class ConnectionClosedError(ConnectionError):
    """The other side closed the socket."""


def send(sock: socket.socket, message: Message) -> None:
    """Send one message."""
    payload = json.dumps(message).encode()
    sock.sendall(_HEADER.pack(len(payload)) + payload)


def receive(sock: socket.socket, deadline: float | None = None) -> Message:
    """Receive one message, within `deadline` seconds if given.

    Raises:
        TimeoutError: Nothing complete arrived in time.
        ConnectionClosedError: The other side is gone.
    """
    end = None if deadline is None else time.monotonic() + deadline
    (size,) = _HEADER.unpack(_receive_exactly(sock, _HEADER.size, end))
    return json.loads(_receive_exactly(sock, size, end))


def _receive_exactly(sock: socket.socket, size: int, end: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        sock.settimeout(None if end is None else max(1e-3, end - time.monotonic()))
        try:
            piece = sock.recv(size - len(data))
        except ConnectionResetError:
            piece = b""
        if not piece:
            raise ConnectionClosedError("the connection was closed")
        data += piece
    return bytes(data)


class SharedArrays:
    """Named arrays in one anonymous file that two processes map.

    The file has no name in the file system, so nothing is left behind however the processes end.
    """

    def __init__(self, descriptor: int, shapes: Mapping[str, ArraySpec]) -> None:
        self._descriptor = descriptor
        self._shapes = shapes
        *offsets, size = _offsets(shapes)
        memory = mmap.mmap(descriptor, size)
        self.arrays = {
            name: np.ndarray(shape, dtype, memory, offset)
            for (name, (shape, dtype)), offset in zip(shapes.items(), offsets, strict=True)
        }

    @classmethod
    def create(cls, shapes: Mapping[str, ArraySpec]) -> SharedArrays:
        """Allocate zeroed arrays of the given shapes.

        Raises:
            UserError: Shared memory is too small, which would end a process that writes into it.
        """
        size = size_of(shapes)
        with tempfile.TemporaryFile(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as file:
            file.truncate(size)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise UserError(
                    f"Shared memory is too small for another {size / 2**20:.1f} MiB: {error.strerror}",
                    file=SHARED_MEMORY,
                    expected="room for what environments exchange with their simulators",
                    fix="use fewer environments (--num_envs), or give the container more: `docker run --shm-size=8g`"
                    " or `--ipc=host`",
                ) from error
            return cls(os.dup(file.fileno()), shapes)

    def send_to(self, sock: socket.socket, message: Message, rows: slice) -> None:
        """Pass these rows of every array to the other side along with `message`; it calls `receive_from`."""
        send(sock, {**message, "shapes": dict(self._shapes), "rows": [rows.start, rows.stop]})
        socket.send_fds(sock, [b"f"], [self._descriptor])

    @classmethod
    def receive_from(cls, sock: socket.socket, message: Message) -> Mapping[str, np.ndarray]:
        """Map the arrays that came along with `message`; they hold the mapping, no descriptor stays open."""
        _, (descriptor,), _, _ = socket.recv_fds(sock, 1, 1)
        arrays = cls(descriptor, message["shapes"]).arrays
        os.close(descriptor)
        return {name: array[slice(*message["rows"])] for name, array in arrays.items()}

    def close(self) -> None:
        """Close the descriptor, when the other side has the arrays; the mapping goes when the last of them does."""
        os.close(self._descriptor)


def size_of(shapes: Mapping[str, ArraySpec]) -> int:
    """Bytes of the file that holds such arrays."""
    return _offsets(shapes)[-1]


def _offsets(shapes: Mapping[str, ArraySpec]) -> list[int]:
    """Where each array begins in the file, and the size of the file."""
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values()]
    *offsets, end = itertools.accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0)
    return [*offsets, max(end, mmap.PAGESIZE)]
