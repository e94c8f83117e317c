"""`open_lm.main` with one fault, for tests: FAULT is kind:rank:step, by which that process fails in that step (from 1) and after it.

Kinds: nan (its loss), raise, hang, and kill, which strikes in the first attempt under torchrun only. Two more are of the first process:
copies, whose last file of each run state takes 3 s to the remote; and weights, which take 6 s to write, torchrun gets SIGTERM then, and
steps have a grace of 0.5 s.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from open_lm.main import main
from open_lm.train.step import Step

kind, rank, at = os.environ["FAULT"].split(":")
plain = Step.__call__
count = 0


def slow_copies() -> None:
    from open_lm import storage

    upload = storage.upload

    def slow(path: Any, url: str, *rest: Any) -> None:
        time.sleep(3 if url.endswith("state.json") else 0)
        upload(path, url, *rest)
        print("copied", file=sys.stderr, flush=True)

    storage.upload = slow


def slow_weights() -> None:
    from open_lm.train import guard, saving

    write = saving.write_weights
    guard._GRACE = 0.5

    def slow(*args: Any) -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(6)
        write(*args)

    saving.write_weights = slow


if kind in ("copies", "weights"):
    {"copies": slow_copies, "weights": slow_weights}[kind]()


def faulty(self: Step, *args: Any) -> Any:
    global count
    count += 1
    if os.environ["RANK"] == rank and count >= int(at):
        if kind == "raise":
            raise RuntimeError("a fault of this process alone")
        if kind == "hang":
            time.sleep(600)
        if kind == "kill" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "nan":
            inner = self._forward

            def forward(part: Any) -> Any:
                sums = inner(part)
                return sums._replace(total=sums.total * float("nan"))

            self._forward = forward  # type: ignore[method-assign]
    return plain(self, *args)


Step.__call__ = faulty  # type: ignore[method-assign]
sys.exit(main())
