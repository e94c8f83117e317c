"""An exception that ends this process: told in the log of the run at once, and the process is gone soon."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from open_lm.command_line import tell_launcher
from open_lm.train.guard import Guard, add_to_log, end_soon
from open_lm.train.parallel import World


class Failure:
    """A context that tells an exception of its body; one within the other is fine, the inner one tells it.

    Use it inside what is closed on the way out: that may take long, or wait for processes that are gone.

    Args:
        log: of the run.
        has_log: whether `logging` of this process goes to a log.
    """

    def __init__(self, world: World, log: Path, has_log: bool, guard: Guard):
        self.world, self.log, self.has_log, self.guard = world, log, has_log, guard
        self._told: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, Exception) or error is self._told:
            return
        self._told, step = error, self.guard.step
        where = f"process {self.world.rank} stopped" + ("" if step is None else f" in or after step {step + 1}")
        gone = _peer_is_gone(error)
        trace_told = None if isinstance(error, (ValueError, OSError)) else error
        words = f"{where}: {'another process of the run is gone' if gone else error}"
        if self.has_log and not self.world.is_first:
            logging.error(words, exc_info=trace_told)
            trace_told = None
        add_to_log(self.log, words + (f"\n{''.join(traceback.format_exception(trace_told))}" if trace_told else ""))  # main prints it
        tell_launcher(words)
        if self.world.size > 1:
            end_soon()
        if gone:
            self._told = ConnectionError("another process of the run is gone")
            raise self._told from error


def _peer_is_gone(error: Exception) -> bool:
    """Whether a collective failed because a process at its other end ended."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
