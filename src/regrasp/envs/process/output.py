"""What a child process prints, kept to its end."""

from __future__ import annotations

import fcntl
import os
import tempfile

_KEPT_BYTES = 1 << 20
_LIMIT_BYTES = 2 * _KEPT_BYTES


class OutputTail:
    """An unnamed file that a child process writes to, without a reader that it could wait for.

    Past 2 MB, `trim` keeps the last 1 MB; what is printed during that instant may be lost.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the process
        # Every write goes to the end, wherever trimming has moved it.
        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) | os.O_APPEND)

    def fileno(self) -> int:
        """Where the child writes."""
        return self._file.fileno()

    def trim(self) -> None:
        """Drop the oldest output if there is too much; cheap when there is not."""
        if self._size > _LIMIT_BYTES:
            kept = self._last(_KEPT_BYTES)
            os.ftruncate(self.fileno(), 0)
            self._file.write(kept)

    def text(self, num_bytes: int) -> str:
        """The last `num_bytes`, decoded as far as they are text, without surrounding white space."""
        return self._last(num_bytes).decode(errors="replace").strip()

    def close(self) -> None:
        """Give the space back."""
        self._file.close()

    @property
    def _size(self) -> int:
        return os.fstat(self.fileno()).st_size

    def _last(self, num_bytes: int) -> bytes:
        return os.pread(self.fileno(), num_bytes, max(0, self._size - num_bytes))
