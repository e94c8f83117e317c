"""A run belongs to one launcher: no orphan goes on after its launcher died, no two runs write into one folder, a restart goes on.

torchrun starts its processes in sessions of their own, so they outlive it when it is killed; a restarted run would then find its
orphaned self still writing. With --max-restarts it starts them again after a failure, with the very same command.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import IO

from open_lm import storage
from open_lm.params.check import TOPICS
from open_lm.params.fields import build_parser
from open_lm.train.loop import Nothing, Position
from open_lm.train.step import StepResult

LOCK = ".lock"
"""Of a run folder: the process id of the first process, and under it the launcher."""


class LauncherWatch(Nothing):
    """Ends this process after the step in which its parent is gone, before anything more is written."""

    def __init__(self) -> None:
        self.parent = os.getppid()

    def after_step(self, position: Position, result: StepResult) -> None:
        """Raises ProcessLookupError when the launcher has died."""
        if os.getppid() != self.parent:
            raise ProcessLookupError(
                f"step {position.step}: the launcher of this run is gone; nothing more is written. Start it with --resume latest"
            )


def lock_run_folder(path: Path, patience: float = 60.0) -> IO[str]:
    """Hold the run folder until the returned file is closed or this process ends, however it ends.

    Args:
        path: an existing folder.
        patience: seconds to wait for a process that is about to end.

    Raises:
        ValueError: another process keeps it.
    """
    file = open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  # open as long as the run
    end, told = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > end:
                file.close()
                raise ValueError(f"--name {path.name}: another process is writing to {path}; end it, or use another name") from None
            if not told:
                print(f"open_lm: another process is writing to {path}; waiting up to {patience:.0f} s for it to end", file=sys.stderr)
                told = True
            time.sleep(0.2)


def sign_lock(lock: IO[str]) -> None:
    """Say in the lock of a run folder who writes there: of a run whose options are right, so that a restart takes no other for its own."""
    with storage.tell_full_disk(lock.name):
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n{launcher()}\n")
        lock.flush()


def started_by_torchrun() -> bool:
    """Whether torchrun, or anything that sets its variables, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launcher() -> str:
    """What tells one launcher from all others: machine, process, when it began."""
    return f"{socket.gethostname()} {os.getppid()} {_ticks(os.getppid())}"


def was_ours(folder: Path) -> bool:
    """Whether this is a restart by torchrun, and the run in the folder was last written under the same launcher."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    try:
        return (folder / LOCK).read_text(encoding="utf-8").splitlines()[1:] == [launcher()]
    except OSError:
        return False


def seconds_since_launch() -> float:
    """Since torchrun, else this process, began; 0 where the system does not tell."""
    ticks = _ticks(os.getppid() if started_by_torchrun() else os.getpid())
    try:
        up = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError):
        return 0.0
    return max(0.0, up - ticks / os.sysconf("SC_CLK_TCK")) if ticks else 0.0


def _ticks(pid: int) -> int:
    """When a process began, in clock ticks since the machine did; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def next_command(name: str) -> str:
    """The command, for a shell, that goes on with this run: as it was given, with --resume latest."""
    words = list(sys.orig_argv)
    if started_by_torchrun():
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            words = told if any("open_lm" in word for word in told) else words
    return shlex.join(_resuming(words, name))


def _resuming(words: list[str], name: str) -> list[str]:
    """The words of a command without --overwrite, --resume and what it said, and its reset; with --name and --resume latest."""
    flags = [_flag(word) for word in words]
    doomed = {"--overwrite", "--resume"} | (set() if "--load-pretrained-state" in flags else {"--reset-trainer-state"})
    kept: list[str] = []
    for before, word, flag in zip(["", *words], words, flags, strict=False):
        if flag not in doomed and (_flag(before) != "--resume" or "=" in before):
            kept.append(word)
    return [*kept, *(() if "--name" in flags else ("--name", name)), "--resume", "latest"]


def _flag(word: str) -> str:
    """The flag of this project that a word is, also shortened; "" for any other word."""
    name = word.split("=")[0]
    flags = _flags()
    meant = [name] if name in flags else [flag for flag in flags if name.startswith("--") and name != "--" and flag.startswith(name)]
    return meant[0] if len(meant) == 1 else ""


@functools.cache
def _flags() -> list[str]:
    return [*build_parser(TOPICS)._option_string_actions]
