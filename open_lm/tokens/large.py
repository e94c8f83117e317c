"""Documents too large to be held by every worker at once: one worker of the machine at a time may have one.

A worker's ordinary memory allows documents of up to 8 MiB. Beyond that it takes the lock of the work folder, which the system frees when
the worker dies, and spends the memory that `memory.py` keeps apart for this.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

BYTES_PER_BYTE = 8
"""Memory that a document costs at its worst moment (the line, its text, its ids before they are packed) for each byte of its size as
it was last told, which is more than half of its size."""

_LOCK = "large-document.lock"


class LargeDocuments:
    """A worker's claim on the machine's memory for large documents.

    Args:
        folder: shared by the workers.
        limit: bytes of memory kept for them.
    """

    def __init__(self, folder: str, limit: int):
        self._path, self._limit = Path(folder) / _LOCK, limit
        self._file: int | None = None

    def __enter__(self) -> LargeDocuments:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def grow(self, size: int) -> None:
        """A document has come to `size` bytes: wait for the lock, or say that it is too large.

        Raises:
            ValueError: it needs more memory than there is; the reader adds file and line.
        """
        needed = size * BYTES_PER_BYTE
        if needed > self._limit:
            raise ValueError(
                f"holds a document of more than {size >> 20} MiB, which needs about {needed >> 20} MiB apart from the workers'"
                f" own memory, and {self._limit >> 20} MiB are left; give a larger --memory-limit, or fewer --num-workers"
            )
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def release(self) -> None:
        """The document is packed."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
