"""Order files: which rows some steps of a run read, as a .npy that any other program can read.

[steps, global batch, 3], uint32 (uint64 where a number needs it), C order: for each step, and each slot of its global batch, the source,
the shard of the source and the row of the shard, all counted from 0 in the order of the run's options. Process r of R reads the slots
r, r + R, ... The file doesn't hold its first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from open_lm import storage


@dataclass(frozen=True)
class Difference:
    """Where two orders differ first: (source, shard, row) in the file and in the run."""

    step: int
    slot: int
    in_file: tuple[int, int, int]
    in_run: tuple[int, int, int]


def write_order(path: str, order: np.ndarray) -> None:
    """Write an order [steps, global batch, 3], whole or not at all; uint32 or uint64."""
    if not path.endswith(".npy"):
        raise ValueError(f"--order-file {path}: give a name that ends in .npy")
    if storage.local_path(path).exists():
        raise ValueError(f"--order-file {path}: exists; remove it, or give another name")
    with storage.atomic_write(storage.local_path(path)) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(order), allow_pickle=False)


def read_order(path: str) -> np.ndarray:
    """Read an order: [steps, global batch, 3], mapped into memory.

    Raises:
        ValueError: no such file, or something else.
    """
    try:
        order = np.load(storage.local_path(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"--check-order {path}: can't be read as .npy: {error}") from None
    if not isinstance(order, np.ndarray) or order.dtype not in (np.uint32, np.uint64) or order.ndim != 3 or order.shape[2] != 3:
        about = f"{order.dtype} {list(order.shape)}" if isinstance(order, np.ndarray) else "an archive"
        raise ValueError(f"--check-order {path}: is {about}, not uint32 or uint64 [steps, global batch, 3]")
    return order


def first_difference(in_file: np.ndarray, in_run: np.ndarray, first_step: int) -> Difference | None:
    """The first slot of two orders [steps, global batch, 3] that isn't equal; None where there is none.

    Raises:
        ValueError: batches of two sizes.
    """
    if in_file.shape != in_run.shape:
        raise ValueError(
            f"--check-order: the file has {in_file.shape[0]} batches of {in_file.shape[1]} rows, "
            f"the run {in_run.shape[0]} of {in_run.shape[1]}"
        )
    unequal = (in_file != in_run).any(axis=2)
    if not unequal.any():
        return None
    step, slot = (int(i) for i in np.unravel_index(int(unequal.argmax()), unequal.shape))
    return Difference(first_step + step, slot, _place(in_file[step, slot]), _place(in_run[step, slot]))


def _place(values: np.ndarray) -> tuple[int, int, int]:
    source, shard, row = (int(v) for v in values)
    return source, shard, row
