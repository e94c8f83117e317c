"""How many workers fit into --memory-limit, and what is left for large documents. Sizes in bytes, measured (docs/benchmarks.md).

The memory is the proportional set size of all processes together: pages that workers share count once.
"""

from __future__ import annotations

from dataclasses import dataclass

from open_lm.params.sizes import parse_size

__all__ = ["MemoryPlan", "default_limit", "parse_size", "plan_memory"]

MAIN_BYTES = 200 * 10**6
"""The first process, with the fork server and what all of them share: libraries and the tokenizer."""
WORKER_BYTES = 150 * 10**6
"""A worker's own: the sequences it gathers, a batch of texts with its ids, the tokenizer's caches."""
FILE_BYTES = 500
"""An input file in the list of the first process."""
SMALLEST_LARGE_BYTES = 64 << 20
"""Kept for documents beyond 8 MiB, at the least."""
_FREE_WORKERS = 8


@dataclass(frozen=True)
class MemoryPlan:
    """Workers that may run, and bytes for documents beyond 8 MiB."""

    workers: int
    large_bytes: int


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
