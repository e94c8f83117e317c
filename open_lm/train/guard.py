"""A thread that sees what the training thread can't while it waits: signals, a step that never ends, a launcher that ends the rest.

The training thread may sit in a collective that will never complete, where no Python handler runs. So signals are read from a pipe
(`signal.set_wakeup_fd`) by a thread, which only notes them: what follows is decided at a step boundary by all processes (`endings`).
By itself the thread ends the process in three cases, and saves nothing in any of them:

- a second SIGINT: at once;
- SIGTERM or SIGINT to one of several processes, and its step doesn't end: the others are gone;
- no step for --watchdog-minutes, and no progress of what follows one.

After the last step it goes on noting signals, so that nothing cuts off what is written then, until a second SIGINT.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from open_lm.command_line import forked, tell_launcher

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STUCK, INTERRUPTED = 6, 130
"""Exit codes: the watchdog's, and that of a second SIGINT."""
_GRACE = 12.0
"""Seconds that a step may take after a signal; at least three of the longest steps so far. torchrun kills after 30."""
_OTHERS = 5.0
"""Seconds in which the others write their stacks before the launcher ends them."""

_guarded = False  # whether a guard of this process holds the wake-up pipe


def _forked() -> None:
    global _guarded
    if _guarded:
        _guarded = False
        forked()


os.register_at_fork(after_in_child=_forked)


class Guard:
    """Use it in a `with`, in the main thread, around the training of one process.

    Args:
        who: of this process in messages, such as "process 3".
        log: file that messages are added to besides standard error.
        several: whether the run has more processes than this.
        watchdog: seconds without a step after which the process ends; 0 for none.

    Attributes:
        asked: signals that came, by number.
        step: steps made, None before the first one ended here.
    """

    def __init__(self, who: str, log: Path, several: bool = False, watchdog: float = 0.0):
        self.who, self.log, self.several, self.watchdog = who, log, several, watchdog
        self.asked: set[int] = set()
        self.step: int | None = None
        self._in_step, self._last, self._longest, self._asked_at = True, time.monotonic(), 0.0, 0.0
        self._restore = contextlib.ExitStack()

    @contextlib.contextmanager
    def beside_the_step(self, step: int) -> Iterator[None]:
        """Around what follows a step, may take long and is no step: saving, validation."""
        self.step = step
        now = time.monotonic()
        self._longest, self._last, self._in_step = max(self._longest, now - self._last), now, False
        try:
            yield
        finally:
            self._last, self._in_step = time.monotonic(), True

    def progress(self) -> None:
        """What follows a step goes on: a batch was scored, a part was computed."""
        self._last = time.monotonic()

    def steps_ended(self) -> None:
        """No step follows: from here on only a second SIGINT ends the process."""
        self.watchdog, self._in_step = 0.0, False

    def __enter__(self) -> Guard:
        global _guarded
        self._last = time.monotonic()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._watch, args=(reading,), name="guard", daemon=True)
        self._restore.callback(os.close, reading)
        self._restore.callback(thread.join)
        self._restore.callback(os.close, writing)  # the thread reads the end of the pipe
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._restore.callback(signal.signal, number, signal.signal(number, lambda *_: None))
            self._restore.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
            _guarded = True
        thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _guarded
        _guarded = False
        self._restore.close()

    def _watch(self, reading: int) -> None:
        while True:
            ready, _, _ = select.select([reading], [], [], 0.5)
            if ready:
                numbers = os.read(reading, 64)
                if not numbers:
                    return
                for number in numbers:
                    self._note(number)
            self._look(time.monotonic())

    def _note(self, number: int) -> None:
        if number not in SIGNALS:
            return
        if number == signal.SIGINT and number in self.asked:
            self._end(INTERRUPTED, "second SIGINT: ended at once, nothing saved")
        if not self.asked:
            self._asked_at = time.monotonic()
        self.asked.add(number)

    def _look(self, now: float) -> None:
        leaving = self.asked & {signal.SIGTERM, signal.SIGINT}
        grace = max(_GRACE, 3 * self._longest)
        if leaving and self.several and self._in_step and now - max(self._asked_at, self._last) > grace:
            name = signal.Signals(min(leaving)).name
            self._end(1, f"{name}, and no step ended in {grace:.0f} s: other processes are gone; nothing saved\n{stacks()}")
        if self.watchdog and now - self._last > self.watchdog:
            text = f"--watchdog-minutes {self.watchdog / 60:g}: no step for {now - self._last:.0f} s; nothing saved. Stacks:\n{stacks()}"
            self._end(STUCK, text, wait=_OTHERS if self.several else 0.0)

    def _end(self, code: int, why: str, wait: float = 0.0) -> None:
        tell(self.log, f"{self.who}: {why}")
        tell_launcher(f"{self.who}: {why.splitlines()[0]}")
        time.sleep(wait)
        os._exit(code)


def stacks() -> str:
    """The stacks of all threads of this process."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def tell(log: Path, text: str) -> None:
    """Write to standard error and to the log, past `logging`, whose locks a stuck thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text.rstrip()}\n".encode())
    add_to_log(log, text)


def add_to_log(log: Path, text: str, level: str = "ERROR") -> None:
    """Add to a log that several processes share, in one write; where its folder is, which other machines may lack."""
    line = f"{time.strftime('%Y-%m-%d,%H:%M:%S')} | {level} | {text.rstrip()}\n".encode()
    with contextlib.suppress(OSError), open(log, "ab", buffering=0) as file:
        file.write(line)


def end_soon(seconds: float = 10.0) -> None:
    """End this process after an error even if its way out hangs in a collective with processes that are gone."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
