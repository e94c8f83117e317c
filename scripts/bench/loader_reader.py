"""One reader of rows in one process on one core: `python scripts/bench/loader_reader.py READER FOLDER PASSES CHECK [NAME=VALUE ...]`.

It prints a JSON object: seconds, tokens and, with CHECK 1, the checksum of a pass. Readers `mds` and `write-mds` run in the environment of
MosaicML Streaming, without open_lm, so that nothing of it is imported above them.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH = 64
Batches = Iterator[torch.Tensor]
"""Tokens [BATCH, row] int64."""


def ours(folder: Path, fmt: str, workers: int, passes: int) -> Batches:
    """open_lm's loader."""
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from open_lm.data.dataset import build_train_data
    from open_lm.data.loader import Loader, LoaderShape
    from open_lm.params.data import DataParams

    data = build_train_data(DataParams(train_data=(f"{folder}/{fmt}/*.tar",)), seq_len=2048, vocab_size=50_432, global_batch_size=BATCH)
    rows = data.one_pass() or 0
    with Loader(data.rows, LoaderShape(0, 1, BATCH, data.streams, 0, passes * rows), workers) as loader:
        for batch in loader:
            yield batch.tokens


def webdataset(folder: Path, key: str, passes: int) -> Batches:
    """webdataset, decoding as OpenLM does: `ast.literal_eval` for txt, its own decoder (gzip, then json) for json.gz."""
    import webdataset as wds

    decode = wds.map_dict(txt=lambda data: ast.literal_eval(data.decode())) if key == "txt" else wds.decode()
    shards = sorted(map(str, (folder / key).glob("*.tar")))
    for _ in range(passes):
        pipeline = wds.DataPipeline(
            wds.SimpleShardList(shards), wds.tarfile_to_samples(), decode, wds.to_tuple(key), wds.batched(BATCH, None)
        )
        for batch in pipeline:
            yield torch.LongTensor([row for (row,) in batch])


def memory_map(folder: Path, passes: int, at_once: bool) -> Batches:
    """The rows of a memory-mapped file, in random order, one after another, as loaders without a format read them; or gathered at once."""
    rows = np.load(folder / "raw.npy", mmap_mode="r")
    for number in range(passes):
        order = np.random.default_rng(number).permutation(len(rows))
        for start in range(0, len(rows), BATCH):
            some = order[start : start + BATCH]
            if at_once:
                yield torch.from_numpy(rows[some].astype(np.int64))
            else:
                yield torch.stack([torch.from_numpy(rows[i].astype(np.int64)) for i in some])


def write_mds(folder: Path) -> None:
    """The rows in MosaicML Streaming's own format."""
    from streaming import MDSWriter

    rows = np.load(folder / "raw.npy")
    with MDSWriter(out=str(folder / "mds"), columns={"tokens": f"ndarray:uint16:{rows.shape[1]}"}) as out:
        for row in rows:
            out.write({"tokens": row})


def mds(folder: Path, passes: int) -> Batches:
    """MosaicML Streaming, shuffled, tokens to int64 as its users do."""
    from streaming import StreamingDataLoader, StreamingDataset

    class Tokens(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.from_numpy(super().__getitem__(index)["tokens"].astype(np.int64))

    data = Tokens(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    for _ in range(passes):
        yield from StreamingDataLoader(data, batch_size=BATCH, num_workers=0)


def _reader(name: str, folder: Path) -> Callable[[int], Batches]:
    kind, _, rest = name.partition(":")
    if kind == "ours":
        fmt, workers = rest.split(":")
        return lambda passes: ours(folder, fmt, int(workers), passes)
    if kind == "webdataset":
        return lambda passes: webdataset(folder, rest, passes)
    if kind == "memmap":
        return lambda passes: memory_map(folder, passes, rest == "gathered")
    return lambda passes: mds(folder, passes)


def _checksum(batches: Batches) -> int:
    total = 0
    for batch in batches:
        weights = torch.arange(1, batch.shape[1] + 1)
        total += int((batch * weights).sum())
    return total % (1 << 64)


def main() -> None:
    """See the module."""
    name, folder, passes, check = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    if name == "write-mds":
        write_mds(folder)
        return
    found: dict[str, Any] = {}
    reader = _reader(name, folder)
    if check:
        found["checksum"] = _checksum(reader(1))
    batches = reader(passes)
    next(batches)  # what is opened once
    began, cpu, tokens = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        tokens += batch.numel()
    print(json.dumps({**found, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu, "tokens": tokens}))


if __name__ == "__main__":
    main()
