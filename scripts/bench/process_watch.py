"""The memory and the reads and writes of a session of processes (a command and all that it starts), sampled from Linux's /proc.

Memory is the proportional set size: a page that n processes share counts 1/n in each, so that the sum over processes is what they hold.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_EVERY = 0.1
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.M)
_IO = re.compile(r"^rchar: (\d+)\nwchar: (\d+)$", re.M)


@dataclass(frozen=True)
class Sample:
    """One look: when (monotonic), the bytes of each process, and what all processes together read and wrote so far."""

    time: float
    memory: tuple[int, ...]
    read: int
    written: int


class ProcessWatch:
    """Looks ten times a second, from a thread of its own, at all processes of a session; use it as a context.

    Args:
        session: id of a process started with `start_new_session`.
    """

    def __init__(self, session: int):
        self.samples: list[Sample] = []
        self._session = session
        self._io: dict[int, tuple[int, int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def peak(self) -> Sample:
        """The look with the most memory."""
        return max(self.samples, key=lambda sample: sum(sample.memory))

    def _watch(self) -> None:
        while not self._ended.is_set():
            started = time.monotonic()
            self.samples.append(self._look(started))
            self._ended.wait(max(0.0, _EVERY - (time.monotonic() - started)))

    def _look(self, now: float) -> Sample:
        memory = []
        for process in _processes(self._session):
            pss, read_written = _of(process)
            if pss:
                memory.append(pss)
            if read_written is not None:
                self._io[process] = read_written  # the last of a process that is gone stays
        read, written = (sum(values) for values in zip(*self._io.values(), strict=True)) if self._io else (0, 0)
        return Sample(now, tuple(sorted(memory, reverse=True)), read, written)


def _processes(session: int) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended
                continue
            if int(after_name[3]) == session:
                yield int(folder.name)


def _of(process: int) -> tuple[int, tuple[int, int] | None]:
    """(bytes of memory, (bytes read, bytes written)) of a process; (0, None) of one that ended."""
    folder = Path(f"/proc/{process}")
    try:
        pss = _PSS.search((folder / "smaps_rollup").read_text())
        counters = _IO.search((folder / "io").read_text())
    except OSError:
        return 0, None
    return int(pss.group(1)) * 1024 if pss else 0, (int(counters.group(1)), int(counters.group(2))) if counters else None
