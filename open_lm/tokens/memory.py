"""How many workers fit into --memory-limit, and what is left for large documents. Sizes in bytes, measured (docs/benchmarks.md).

The memory is the proportional set size of all processes together: pages that workers share count once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAIN_BYTES = 200 * 10**6
"""The first process, with the fork server and what all of them share: libraries and the tokenizer."""
WORKER_BYTES = 150 * 10**6
"""A worker's own: the sequences it gathers, a batch of texts with its ids, the tokenizer's caches."""
FILE_BYTES = 500
"""An input file in the list of the first process."""
SMALLEST_LARGE_BYTES = 64 << 20
"""Kept for documents beyond 8 MiB, at the least."""
_FREE_WORKERS = 8

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12}
_BINARY = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


@dataclass(frozen=True)
class MemoryPlan:
    """Workers that may run, and bytes for documents beyond 8 MiB."""

    workers: int
    large_bytes: int


def parse_size(text: str) -> int:
    """Bytes of a size such as 500MB, 1.5 GB, 2GiB or 2000000000. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", text)
    factor = (_UNITS | _BINARY).get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size; write it as 2GB, 1.5GiB or a number of bytes")
    return int(float(match.group(1)) * factor)


def default_limit(workers: int) -> int:
    """2 GB, and 150 MB for each worker above 8."""
    return 2 * 10**9 + 150 * 10**6 * max(0, workers - _FREE_WORKERS)


def plan_memory(limit: int, workers: int, files: int, wide: bool) -> MemoryPlan:
    """What fits into a limit.

    Args:
        workers: as many as were asked for.
        wide: ids of 4 bytes, not 2.

    Raises:
        ValueError: not even one worker fits.
    """
    fixed = MAIN_BYTES + FILE_BYTES * files
    each = WORKER_BYTES + ((32 << 20) if wide else 0)
    fitting = (limit - fixed - SMALLEST_LARGE_BYTES) // each
    if fitting < 1:
        least = fixed + SMALLEST_LARGE_BYTES + each
        raise ValueError(
            f"--memory-limit {limit / 1e6:.0f} MB: one worker with {files:,} input files needs {least / 1e6:.0f} MB; give more"
        )
    count = min(workers, fitting)
    return MemoryPlan(count, limit - fixed - count * each)
