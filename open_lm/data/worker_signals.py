"""How a data worker answers signals that are sent to all processes of a job at once: it leaves them to the process that trains."""

from __future__ import annotations

import signal
from types import FrameType


def leave_signals_to_the_parent() -> None:
    """Ignore SIGINT and SIGUSR1, and the first SIGTERM; the second ends this process. Called in the worker.

    A batch system sends SIGTERM to every process of a job. The training process then makes two more steps and saves; a worker that
    died at once would end it with an error instead. Closing the loader terminates a worker that doesn't end by itself, and the end
    of the training process does so once more.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)
