"""Run with a folder on a small disk: fills it, lets each writer of the project write there, and prints what it says."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from open_lm import storage
from open_lm.checkpoint.run_state import RunState
from open_lm.checkpoint.state_writer import StateWriter
from open_lm.checkpoint.unshard import mapped_tensors
from open_lm.checkpoint.weights import write_weights
from open_lm.evaluation.result import Result
from open_lm.evaluation.table_files import write_table
from open_lm.shards.tar import write_shard
from open_lm.storage.json_lines import add_line
from open_lm.train.run_folder import _LogFile
from open_lm.train.sinks import JsonLines

disk, long = Path(sys.argv[1]), "x" * 20_000
large, results = {"a": torch.zeros(1 << 20)}, {"a": {"t/0-shot": Result(0.5, 10, 1.0)}}
state = RunState(1, 1, 1, 1, {}, {}, {}, None, {}, 1)
metrics, log = JsonLines(disk / "metrics.jsonl", 0), _LogFile(disk / "out.log")
with open(disk / "rest", "wb", buffering=0) as rest:
    try:
        while True:
            rest.write(bytes(1024))
    except OSError:
        pass
writers: list[Callable[[], object]] = [
    lambda: write_weights(disk / "epoch_1.pt", large, {}),
    lambda: StateWriter(str(disk)).save(large, state, wait=True),
    lambda: metrics.write({"loss": long}, 1, "train"),
    lambda: add_line(disk / "results.jsonl", [long]),
    lambda: write_table(results, str(disk / "r.json")),
    lambda: write_table(results, str(disk / "r.md")),
    lambda: write_shard(disk / "shard-0000000.tar", "npy", np.zeros((2, 2000), np.uint16)),
    lambda: storage.write_bytes(str(disk / "manifest.jsonl"), long.encode()),
    lambda: mapped_tensors({"a": (torch.Size([1 << 20]), torch.float32)}, disk),
]
for write in writers:
    try:
        write()
        print("nothing was said")
    except OSError as error:
        print(error)
logging.getLogger().addHandler(log)
for _ in range(2):
    logging.error(long)
sys.stdout.flush()
os._exit(1 if list(disk.rglob(".*.tmp")) else 0)
