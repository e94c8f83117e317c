"""How a data worker answers signals that are sent to all processes of a job at once: it leaves them to the process that trains."""

from __future__ import annotations

import os
import signal
import threading


def leave_signals_to_the_parent() -> None:
    """Ignore SIGINT and SIGUSR1, and SIGTERM from anyone but the parent. Called in the worker, once.

    A batch system sends SIGTERM to every process of a job, and torchrun to every process of its sessions. The training process then
    makes two more steps and saves; a worker that died at once would end it with an error instead. A worker that doesn't end by itself
    when its loader is closed is ended by its parent's SIGTERM, also while it waits in a system call.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_the_parent, name="sigterm", daemon=True).start()


def _end_for_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
