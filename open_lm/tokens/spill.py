"""The file between a unit and the buckets: its sequences, those of bucket 0 first, behind a table of where each bucket begins.

int64 little-endian [buckets + 1] row offsets, then rows [sequences, length] of uint16 or uint32, in each bucket by their index.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from open_lm import storage

_ROWS_AT_ONCE = 4096


def spill_path(folder: str, unit: int) -> Path:
    """Where a unit's sequences lie until the shards are written."""
    return Path(folder) / f"unit-{unit:07d}.spill"


def write_spill(path: Path, rows: np.ndarray, bucket_of: np.ndarray, buckets: int) -> np.ndarray:
    """Write a unit's sequences [n, length] by their buckets [n]; whole or not at all.

    Returns:
        int64 [buckets]: sequences in each.
    """
    order = np.argsort(bucket_of, kind="stable")
    sizes = np.bincount(bucket_of, minlength=buckets).astype(np.int64)
    with storage.atomic_write(path) as file:
        file.write(np.concatenate([[0], np.cumsum(sizes)]).astype("<i8").tobytes())
        for start in range(0, len(order), _ROWS_AT_ONCE):
            file.write(rows[order[start : start + _ROWS_AT_ONCE]].tobytes())
    return sizes


def read_bucket(paths: Sequence[Path], bucket: int, buckets: int, rows: np.ndarray) -> None:
    """Fill `rows` [sequences, length] with one bucket of all spills, in the order of (unit, index)."""
    row_bytes, filled = rows.itemsize * rows.shape[1], 0
    for path in paths:
        with open(path, "rb") as file:
            file.seek(8 * bucket)
            start, stop = (int(v) for v in np.frombuffer(file.read(16), "<i8"))
            if stop > start:
                file.seek(8 * (buckets + 1) + start * row_bytes)
                got = file.readinto(rows[filled : filled + stop - start].data.cast("B"))
                assert got == (stop - start) * row_bytes, f"{path} is not whole"
                filled += stop - start
    assert filled == len(rows), f"bucket {bucket} holds {filled} sequences, not {len(rows)}"
