"""A data worker outlives a SIGTERM to all processes, and ends for its parent's, also where Python can't run a handler."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from open_lm.data.command_output import CommandOutput
from open_lm.data.worker_signals import leave_signals_to_the_parent


def worker() -> int:
    pid = os.fork()
    if pid:
        time.sleep(0.5)
        return pid
    leave_signals_to_the_parent()
    time.sleep(60)
    os._exit(1)


def test_a_command_of_a_worker_answers_signals() -> None:
    before, handler = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with CommandOutput("c", ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]) as output:
            masks = [int(line.split()[1], 16) for line in output.read().splitlines()]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    assert masks[0] == 0 and not masks[1] & (1 << (signal.SIGINT - 1) | 1 << (signal.SIGPIPE - 1))


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
