"""gigatoken within bounded memory.

gigatoken keeps every word it has met, without limit: 60 to 120 bytes each, gigabytes in the long run. Here it is loaded anew, in about
0.15 s, when that store has grown beyond a limit; ids don't depend on it.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_STATM = Path("/proc/self/statm")


class Gigatoken:
    """UTF-8 to ids on the calling thread.

    Args:
        json_text: the content of a tokenizer.json.
        store_bytes: how much memory the words met may take. One call may go beyond it by what its own text adds.

    Raises:
        Exception: gigatoken does not support the tokenizer; each reason has its own kind.
    """

    def __init__(self, json_text: str, store_bytes: int):
        self._json_text, self._limit = json_text, store_bytes
        self.loads = 0
        """How often it was loaded."""
        self._load()

    def _load(self) -> None:
        import gigatoken

        self._tokenizer: Any = None  # the old store goes before the new one comes
        self._tokenizer = gigatoken.Tokenizer.from_json(self._json_text)
        self._grown = 0
        self.loads += 1

    def encode_all(self, texts: Sequence[bytes], dtype: type[np.unsignedinteger]) -> list[np.ndarray]:
        """Ids of each text, of `dtype`."""
        before = _private_bytes()
        # Of gigatoken's calls this one needs no awkward arrays, whose import takes 55 MB and 0.2 s. Its arrays are copied because
        # they hold more memory than they show, which would count as growth.
        ids = [self._tokenizer.encode(text).astype(dtype) for text in texts]
        self._grown += _growth(before, _private_bytes(), sum(map(len, texts)), sum(i.nbytes for i in ids))
        if self._grown > self._limit:
            self._load()
        return ids


def _growth(before: int, after: int, text_bytes: int, id_bytes: int) -> int:
    """How much the store has grown: what the process has grown by apart from the ids, or a cautious guess where it can't be asked."""
    return max(0, after - before - id_bytes) if after else text_bytes


def _private_bytes() -> int:
    """Size of the process's own memory, 0 where the system doesn't tell (only Linux does)."""
    if not _STATM.exists():
        return 0
    return int(_STATM.read_bytes().split()[5]) * resource.getpagesize()
