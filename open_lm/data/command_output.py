"""What a command writes to its standard output, as a binary file read once from the front. No shell is involved."""

from __future__ import annotations

import contextlib
import io
import os
import select
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO, Any, cast

from open_lm.storage.faults import CutShortError, timeout

_PATIENCE = 4
"""Times the storage's timeout that a command may write nothing; it has to start first."""


class CommandOutput(io.BufferedReader):
    """The output of a command.

    Args:
        name: for messages.
        command: its words.

    Raises:
        ValueError: no such program.
        CutShortError: while it is read: the command fails, or writes nothing for a minute.
    """

    def __init__(self, name: str, command: Sequence[str]):
        super().__init__(cast(Any, _Output(name, command)), 1 << 20)


class _Output(io.RawIOBase):
    def __init__(self, name: str, command: Sequence[str]):
        self._name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the command
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors)
        except OSError as error:
            self._errors.close()
            raise ValueError(f"{name}: {command[0]} can't be run ({error.strerror}); install it, or correct the command") from None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], _PATIENCE * timeout())[0]:
            raise CutShortError(f"{self._name}: the command wrote nothing for {_PATIENCE * timeout():.0f} seconds")
        data = os.read(pipe, len(buffer))
        buffer[: len(data)] = data
        if not data and self._process.wait():
            raise CutShortError(f"{self._name}: the command ended with status {self._process.returncode}{self._last_error()}")
        return len(data)

    def _last_error(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, io.SEEK_END) - 1000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._errors.close()
        super().close()
