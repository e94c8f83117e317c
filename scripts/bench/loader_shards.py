"""Rows of tokens to read, the same in every format: OpenLM's shards, and a raw file.

Ids are drawn by Zipf's law over a vocabulary of 50,432 in no order, so that their digits are about those of NeoX tokens of text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_lm.shards.manifest import ShardEntry, write_manifest
from open_lm.shards.members import Format
from open_lm.shards.tar import write_shard

VOCAB_SIZE = 50_432
ROW = 2049
"""Tokens of a row: 2,048 and the next."""


@dataclass(frozen=True)
class Data:
    """Where rows lie.

    Args:
        folder: with a folder of shards for each format, and `raw.npy` [rows, ROW] uint16.
        rows: of each.
        checksum: of all rows, see `checksum`.
    """

    folder: Path
    rows: int
    checksum: int


def checksum(rows: np.ndarray) -> int:
    """Of rows [n, length] in any order: each token counts with its place in the row. Those of parts add up, modulo 2^64."""
    weights = np.arange(1, rows.shape[1] + 1, dtype=np.uint64)
    return int((rows.astype(np.uint64) @ weights).sum(dtype=np.uint64))


def make_data(folder: Path, rows: int, formats: tuple[Format, ...], shards: int = 4) -> Data:
    """Write all formats."""
    tokens = draw(rows, ROW, VOCAB_SIZE)
    for fmt in formats:
        entries = [write_shard(folder / fmt / f"shard-{i:07d}.tar", fmt, part) for i, part in enumerate(np.array_split(tokens, shards))]
        write_manifest(folder / fmt / "manifest.jsonl", entries)
    np.save(folder / "raw.npy", tokens)
    return Data(folder, rows, checksum(tokens))


def draw(rows: int, length: int, vocab_size: int) -> np.ndarray:
    """uint16 [rows, length]."""
    dice = np.random.default_rng(0)
    chances = 1 / (np.arange(vocab_size) + 5.0)
    ends = np.cumsum(chances / chances.sum())
    ids = dice.permutation(vocab_size).astype(np.uint16)
    return ids[np.searchsorted(ends[:-1], dice.random((rows, length)))]


def make_many(folder: Path, shards: int) -> None:
    """So many shards of 8 rows of 64 tokens and one, links to a few files, with their manifest."""
    rows = draw(8, 65, VOCAB_SIZE)
    entries = []
    for index in range(shards):
        name = f"shard-{index:07d}"
        if index % 10_000 == 0:
            first = folder / f"{name}.tar"
            made = write_shard(first, "npy", rows)
        else:
            os.link(first, folder / f"{name}.tar")
        entries.append(ShardEntry(name, made.num_sequences, made.bytes, made.sha256, made.tokens_per_sequence))
    write_manifest(folder / "manifest.jsonl", entries)
