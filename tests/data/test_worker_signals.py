"""A data worker outlives a SIGTERM to all processes, and ends for its parent's, also where Python can't run a handler."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from open_lm.data.worker_signals import leave_signals_to_the_parent


def worker() -> int:
    pid = os.fork()
    if pid:
        time.sleep(0.5)
        return pid
    leave_signals_to_the_parent()
    time.sleep(60)
    os._exit(1)


def ended(pid: int) -> bool:
    time.sleep(0.5)
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def test_signals_from_others_are_left_alone_and_those_of_the_parent_are_not() -> None:
    pid = worker()
    for number in ("TERM", "TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{number}", str(pid)], check=True)
    assert not ended(pid)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid)
