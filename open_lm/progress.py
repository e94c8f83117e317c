"""How far work has come and the time that is left: a bar on a terminal, elsewhere a line now and then.

What is open in this process is shown together, work and the work inside it. A bar stands on standard error and is taken away before a log
line. Without a terminal a line goes to the log (where there is none, to standard error) after 10 seconds, and then each time the work has
taken twice as long, or 5 minutes. Under torchrun the first process alone shows anything.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

BAR_AFTER, LINE_AFTER, LINES_APART = 1.0, 10.0, 300.0
"""Seconds: what is done before shows no bar; the first line; the longest time between two lines."""
_BETWEEN_LOOKS, _QUIET = 0.5, 0.2
"""Seconds between two looks; after a line of someone else in which no bar is drawn, since that line may be on its way."""

log = logging.getLogger(__name__)


class Progress:
    """Some work while it is open, as a context: count in `done`.

    Args:
        what: the work, such as "converting".
        total: what `done` will come to; None where nobody knows, so that there is no time left to tell.
        unit: of `done`, in the plural.
        first: what was done before this began.
        look: in place of counting, tells `done`; asked twice a second, less often when the answer takes long.
        rates: words for `done` and its units per second, in place of the usual ones; they are then said at the end as well.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "",
        *,
        first: int = 0,
        look: Callable[[], int] | None = None,
        rates: Callable[[int, float], str] | None = None,
    ):
        self.what, self.total, self.unit, self.done = what, total, unit, first
        self.look, self._rates = look, rates

    def __enter__(self) -> Progress:
        self.restart(self.look() if self.look else self.done)
        if os.environ.get("RANK", "0") == "0":
            _shown.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *error: object) -> None:
        if _shown.end(self) and kind is None and self._rates:
            _log_or_say(f"{self.what}: done, {self._words(self.look() if self.look else self.done)}")

    def restart(self, done: int) -> None:
        """Measure the rate from here on: what came before, such as compilation, is no measure of the rest."""
        self.done = self._first = done
        self.began = time.monotonic()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, which cost time to get; each is counted when the next is asked for. A loop whose body may fail counts in a `with`."""
        with self:
            for item in items:
                yield item
                self.done += 1

    @property
    def share(self) -> str:
        """What, and the percentage where it is known."""
        return self.what + (f" {100 * min(1.0, self.done / self.total):.0f} %" if self.total else "")

    @property
    def numbers(self) -> str:
        """What is done, how quickly, and the time that is left."""
        done = self.done if self.total is None else min(self.done, self.total)
        since, new = time.monotonic() - self.began, done - self._first
        if self.total is None or new <= 0:
            spent = f"{_in_hours(since)} so far"
        else:
            spent = f"{_in_hours(since / new * (self.total - done))} left"
        return f"{self._words(done)}, {spent}" if self.unit or self._rates else spent

    def _words(self, done: int) -> str:
        rate = (done - self._first) / max(time.monotonic() - self.began, 1e-9)
        if self._rates:
            return self._rates(done, rate)
        return (f"{done:,}" if self.total is None else f"{done:,} of {self.total:,}") + f" {self.unit}"


def _in_hours(seconds: float) -> str:
    """1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def say(line: str) -> None:
    """A line on standard error, above a bar."""
    _shown.take_away()
    print(line, file=sys.stderr, flush=True)


def _log_or_say(line: str) -> None:
    if log.hasHandlers() and log.isEnabledFor(logging.INFO):
        log.info(line)
    else:
        say(line)


class _Shown:
    """What is open in this process, outermost first, and the thread that shows it."""

    def __init__(self) -> None:
        self.lock, self.ended = threading.RLock(), threading.Event()
        self.open: list[Progress] = []
        self.bar_on: TextIO | None = None
        self.quiet_until = 0.0

    def begin(self, one: Progress) -> None:
        with self.lock:
            self.open.append(one)
            if len(self.open) > 1:
                return
            for handler in (*logging.getLogger().handlers, *((logging.lastResort,) if logging.lastResort else ())):
                handler.addFilter(self.take_away)
            self.ended = threading.Event()
            threading.Thread(target=self._watch, args=(one.began, self.ended), daemon=True).start()

    def end(self, one: Progress) -> bool:
        """Whether it was open."""
        with self.lock:
            there = one in self.open
            if there:
                self.open.remove(one)
                self.take_away()
            if not self.open:
                self.ended.set()
        return there

    def take_away(self, record: object = None) -> bool:
        """Remove the bar for a line of someone else; as a filter of log handlers it lets all pass."""
        with self.lock:
            self.quiet_until = time.monotonic() + _QUIET
            if self.bar_on:
                self.bar_on.write("\r\x1b[K")
                self.bar_on.flush()
                self.bar_on = None
        return True

    def _watch(self, began: float, ended: threading.Event) -> None:
        line, pause = began + LINE_AFTER, _BETWEEN_LOOKS
        while not ended.wait(pause):
            looked = time.monotonic()
            with self.lock:  # nothing that was closed is looked at
                for one in self.open:
                    if one.look:
                        one.done = one.look()
            pause = max(_BETWEEN_LOOKS, 20 * (time.monotonic() - looked))  # looking must cost little
            terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
            with self.lock:
                some = [one for one in self.open if looked - one.began > BAR_AFTER or len(self.open) == 1]
                if ended.is_set() or not some or looked < (self.quiet_until if terminal else line):
                    continue
                if terminal and looked - began > BAR_AFTER:
                    self._draw(some)
            if not terminal:
                line = looked + min(looked - began, LINES_APART)
                _log_or_say("; ".join(f"{one.share}: {one.numbers}" for one in some))

    def _draw(self, some: list[Progress]) -> None:
        self.bar_on = sys.stderr
        try:
            columns = os.get_terminal_size(self.bar_on.fileno()).columns or 80  # those of containers and of `script` may tell none
        except (OSError, ValueError):
            columns = 80
        begin, end = ", ".join(one.share for one in some), some[-1].numbers
        room = columns - len(begin) - len(end) - 6
        if some[-1].total and room >= 8:
            full = room * min(some[-1].done, some[-1].total) // some[-1].total
            text = f"{begin} |{'#' * full:{room}}| {end}"
        else:
            text = f"{begin}: {end}"[: columns - 1]
        self.bar_on.write(f"\r{text}\x1b[K")
        self.bar_on.flush()


_shown = _Shown()
os.register_at_fork(after_in_child=_shown.__init__)  # type: ignore[misc]  # the child has no thread that would let go of the lock
