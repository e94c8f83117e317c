"""Start and memory of the loader, in a process of its own: `python scripts/bench/loader_start.py PATTERN SEQ_LEN STREAMS STEP WORKERS`.

It prints a JSON object: milliseconds to open the data (counts, checks, plan) and to the first batch of 64 rows after STEP steps; with a
worker, the memory that is the worker's alone after 100 batches more.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import time
from pathlib import Path

BATCH = 64


def private_megabytes(process: int) -> float:
    """Memory of a process that no other one shares."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.M)) * 1024 / 1e6


def main() -> None:
    """See the module."""
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    import torch

    from open_lm.data.dataset import build_train_data
    from open_lm.data.loader import Loader, LoaderShape
    from open_lm.params.data import DataParams

    torch.set_num_threads(1)
    pattern, seq_len, streams, step, workers = sys.argv[1:]
    began = time.perf_counter()
    params = DataParams(train_data=(pattern,), data_streams=int(streams), multiple_data_passes=True)
    data = build_train_data(params, seq_len=int(seq_len), vocab_size=50_432, global_batch_size=BATCH)
    opened = time.perf_counter()
    with Loader(data.rows, LoaderShape(0, 1, BATCH, data.streams, int(step) * BATCH), int(workers)) as loader:
        batches = iter(loader)
        next(batches)
        found = {"open_ms": round(1e3 * (opened - began), 1), "batch_ms": round(1e3 * (time.perf_counter() - opened), 1)}
        if int(workers):
            for _ in range(100):
                next(batches)
            [worker] = multiprocessing.active_children()
            found["worker_mb"] = round(private_megabytes(worker.pid or 0), 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
