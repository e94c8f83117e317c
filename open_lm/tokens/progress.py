"""How far a stage has come: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0

log = logging.getLogger(__name__)


class Progress:
    """Counts `total` pieces of one stage."""

    def __init__(self, stage: str, total: int, piece: str):
        self._stage, self._total, self._piece = stage, total, piece
        self._done = 0
        self._said = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=stage, unit=piece)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            log.info("%s: %d of %d %ss done", self._stage, self._done, self._total, self._piece)

    def add(self, pieces: int, note: str) -> None:
        """Some more pieces are done; `note` says what they came to."""
        self._done += pieces
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(pieces)
        elif time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            log.info("%s: %d of %d %ss, %s", self._stage, self._done, self._total, self._piece, note)
