"""A run belongs to one launcher: no orphan goes on after its launcher died, and no two runs write into one folder.

torchrun starts its processes in sessions of their own, so they outlive it when it is killed; a restarted run would then find its
orphaned self still writing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from open_lm.train.loop import Nothing, Position
from open_lm.train.step import StepResult

LOCK = ".lock"


class LauncherWatch(Nothing):
    """Ends this process after the step in which its parent is gone, before anything more is written."""

    def __init__(self) -> None:
        self.parent = os.getppid()

    def after_step(self, position: Position, result: StepResult) -> None:
        """Raises RuntimeError when the launcher has died."""
        if os.getppid() != self.parent:
            raise RuntimeError(
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
    file = open(path / LOCK, "w", encoding="utf-8")  # noqa: SIM115  # open as long as the run
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
                logging.warning(f"another process is writing to {path}; waiting up to {patience:.0f} s for it to end")
                told = True
            time.sleep(0.2)
