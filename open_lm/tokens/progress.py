"""How far a stage has come: a bar on a terminal, a log line now and then elsewhere, with rates and the time left."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5

log = logging.getLogger(__name__)


class Progress:
    """Watches one stage from a thread of its own.

    Args:
        stage: its name.
        total: tokens that it will come to, about.
        done: tokens so far; asked twice a second, less often when the answer takes long.
        text_per_token: bytes of text for each token.
    """

    def __init__(self, stage: str, total: int, done: Callable[[], int], text_per_token: float):
        self._stage, self._total, self._done, self._ratio = stage, max(total, 1), done, text_per_token
        self._started = time.monotonic()
        self._first = done()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc}: {percentage:3.0f}%|{bar}| {unit}"
            self._bar = tqdm(total=self._total, initial=self._first, desc=stage, bar_format=layout, unit="")

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        done = self._done()
        if self._bar is not None:
            self._bar.total = done if kind is None else self._total
            self._show(done)
            self._bar.close()
        elif kind is None:
            log.info("%s: done, %s", self._stage, self._rates(done))

    def _watch(self) -> None:
        said, pause = time.monotonic(), _SECONDS_BETWEEN_LOOKS
        while not self._ended.wait(pause):
            looked = time.monotonic()
            done = self._done()
            pause = max(_SECONDS_BETWEEN_LOOKS, 20 * (time.monotonic() - looked))  # looking must cost little
            if self._bar is not None:
                self._show(done)
            elif looked - said > _SECONDS_BETWEEN_LINES:
                said = looked
                log.info("%s: %.0f %%, %s%s", self._stage, 100 * min(1.0, done / self._total), self._rates(done), self._left(done))

    def _show(self, done: int) -> None:
        self._bar.unit = self._rates(done) + self._left(done)
        self._bar.n = min(done, self._bar.total)
        self._bar.refresh()

    def _rates(self, done: int) -> str:
        rate = (done - self._first) / max(time.monotonic() - self._started, 1e-9) / 1e6
        return f"{done / 1e6:.1f} Mtok, {rate:.2f} Mtok/s, {rate * self._ratio:.1f} MB/s"

    def _left(self, done: int) -> str:
        new = done - self._first
        if new <= 0 or done >= self._total:
            return ""
        seconds = round((time.monotonic() - self._started) / new * (self._total - done))
        return f", {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
