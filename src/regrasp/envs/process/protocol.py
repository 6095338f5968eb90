"""The wire between Regrasp and a simulator's process.

Commands and replies are JSON objects, each preceded by its length in four bytes. Arrays never travel: both sides map
the same anonymous file, whose descriptor is passed over the socket once. Imports only the standard library and NumPy,
since the child side may run under a simulator's own Python.
"""

from __future__ import annotations

import json
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

VERSION = 1
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

    def __init__(self, descriptor: int, layout: Mapping[str, Mapping[str, Any]], size: int) -> None:
        self.descriptor = descriptor
        self.layout = dict(layout)
        self.size = size
        self._memory = mmap.mmap(descriptor, size)
        self.arrays = {
            name: np.ndarray(tuple(entry["shape"]), entry["dtype"], self._memory, entry["offset"])
            for name, entry in self.layout.items()
        }

    @classmethod
    def create(cls, shapes: Mapping[str, ArraySpec]) -> SharedArrays:
        """Allocate zeroed arrays of the given shapes."""
        layout: dict[str, dict[str, Any]] = {}
        offset = 0
        for name, (shape, dtype) in shapes.items():
            layout[name] = {"offset": offset, "shape": list(shape), "dtype": dtype}
            num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            offset += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        size = max(offset, mmap.PAGESIZE)
        shared_memory = Path("/dev/shm")
        with tempfile.TemporaryFile(dir=shared_memory if shared_memory.is_dir() else None) as file:
            file.truncate(size)
            return cls(os.dup(file.fileno()), layout, size)

    def part(self, rows: slice) -> SharedArrays:
        """The same memory, with these rows of every array."""
        layout = {}
        for name, entry in self.layout.items():
            _, *shape = entry["shape"]
            row_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(entry["dtype"]).itemsize
            offset = entry["offset"] + rows.start * row_bytes
            layout[name] = {**entry, "offset": offset, "shape": [rows.stop - rows.start, *shape]}
        return SharedArrays(self.descriptor, layout, self.size)

    def send_to(self, sock: socket.socket, message: Message) -> None:
        """Pass the arrays to the other side along with `message`; it calls `receive_from`."""
        send(sock, {**message, "layout": self.layout, "size": self.size})
        socket.send_fds(sock, [b"f"], [self.descriptor])

    @classmethod
    def receive_from(cls, sock: socket.socket, message: Message) -> Mapping[str, np.ndarray]:
        """Map the arrays that came along with `message`; they hold the mapping, no descriptor stays open."""
        _, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        shared = cls(descriptors[0], message["layout"], message["size"])
        os.close(shared.descriptor)
        return shared.arrays

    def close(self) -> None:
        """Close the descriptor, when the other side has the arrays; the mapping goes when the last of them does."""
        os.close(self.descriptor)
