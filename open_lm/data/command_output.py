"""What a command writes to its standard output, as a binary file read once from the front. No shell is involved."""

from __future__ import annotations

import io
import os
import select
import signal
import tempfile
from collections.abc import Sequence
from typing import IO, Any, cast

from open_lm.storage.faults import CutShortError, timeout

_PATIENCE = 4
"""Times the storage's timeout that a command may write nothing; it has to start first."""

_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGPIPE, signal.SIGXFSZ]


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


def _start(command: Sequence[str], errors: IO[bytes]) -> tuple[int, int]:
    """Start a command: its process id, and the file descriptor of its output.

    It answers signals as any program does, whatever this process blocks or ignores (a data worker blocks SIGTERM, `worker_signals`).
    """
    reading, writing = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [(os.POSIX_SPAWN_DUP2, *pair) for pair in ((nothing, 0), (writing, 1), (errors.fileno(), 2))]
    try:
        return os.posix_spawnp(command[0], list(command), os.environ, file_actions=files, setsigmask=[], setsigdef=_SIGNALS), reading
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(nothing)
        os.close(writing)


class _Output(io.RawIOBase):
    def __init__(self, name: str, command: Sequence[str]):
        self._name, self._status = name, cast(int | None, None)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the command
        try:
            self._pid, self._pipe = _start(command, self._errors)
        except OSError as error:
            self._errors.close()
            raise ValueError(f"{name}: {command[0]} can't be run ({error.strerror}); install it, or correct the command") from None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not select.select([self._pipe], [], [], _PATIENCE * timeout())[0]:
            raise CutShortError(f"{self._name}: the command wrote nothing for {_PATIENCE * timeout():.0f} seconds")
        data = os.read(self._pipe, len(buffer))
        buffer[: len(data)] = data
        if not data and self._wait():
            raise CutShortError(f"{self._name}: the command ended with status {self._status}{self._last_error()}")
        return len(data)

    def _wait(self) -> int:
        """The status that the command ended with; waits for it."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status

    def _last_error(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, io.SEEK_END) - 1000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""

    def close(self) -> None:
        if not self.closed:
            if self._status is None:
                os.kill(self._pid, signal.SIGKILL)
                self._wait()
            os.close(self._pipe)
            self._errors.close()
        super().close()
