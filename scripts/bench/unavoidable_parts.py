"""What every preprocessor must do to a corpus, and nothing else, on one core in one process: decompress, parse, tokenize, write shards.

unavoidable_parts.py TOKENIZER FOLDER FILE... prints seconds for each part as JSON. Texts are tokenized in batches of 2 Mi characters;
sequences are written in shards of 8192 (members, tar, sha256, file), once as txt and once as npy. What lies between isn't counted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[2])

import gigatoken  # noqa: E402
import numpy as np  # noqa: E402
import orjson  # noqa: E402
import zstandard  # noqa: E402

from open_lm.shards.members import SEQUENCES_PER_MEMBER, Format, encode_member, token_dtype  # noqa: E402
from open_lm.shards.tar import TarWriter  # noqa: E402
from open_lm.tokenizer import load_tokenizer  # noqa: E402

FORMATS: tuple[Format, ...] = ("txt", "npy")
_READ, _CHARACTERS, _LENGTH, _SHARD = 1 << 20, 2 << 20, 2049, 8192


class _Parts:
    """Seconds spent in each part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("decompress", "parse", "tokenize", *(f"write {fmt}" for fmt in FORMATS)), 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


def _lines(parts: _Parts, path: str) -> Iterator[list[bytes]]:
    """Whole lines, about 1 MiB at a time."""
    rest = b""
    with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
        while True:
            with parts.part("decompress"):
                data = stream.read(_READ)
            if not data:
                break
            with parts.part("parse"):
                *lines, rest = (rest + data).split(b"\n")
            yield lines
    assert not rest, "the last line ends"


def _batches(parts: _Parts, paths: list[str]) -> Iterator[list[str]]:
    texts: list[str] = []
    characters = 0
    for path in paths:
        for lines in _lines(parts, path):
            with parts.part("parse"):
                found = [orjson.loads(line)["text"] for line in lines]
            texts += found
            characters += sum(map(len, found))
            if characters >= _CHARACTERS:
                yield texts
                texts, characters = [], 0
    if texts:
        yield texts


def _encode(tokenizer: Any, texts: list[str]) -> np.ndarray:
    return np.asarray(tokenizer.encode_batch(texts, parallel=False).layout.content.data)


def _write(path: Path, fmt: Format, rows: np.ndarray) -> None:
    size = SEQUENCES_PER_MEMBER[fmt]
    with open(path, "wb") as file:
        out = TarWriter(file)
        for number, first in enumerate(range(0, len(rows), size)):
            out.add(f"{number:012d}.{fmt}", encode_member(fmt, rows[first : first + size]))
        out.close()
    assert len(out.sha256) == 64


def _write_both(parts: _Parts, folder: Path, ids: np.ndarray) -> None:
    rows = ids.reshape(-1, _LENGTH)
    for fmt in FORMATS:
        path = folder / f"shard.{fmt}.tar"
        with parts.part(f"write {fmt}"):
            _write(path, fmt, rows)
        path.unlink()


def measure(tokenizer_file: str, folder: Path, paths: list[str]) -> dict[str, Any]:
    """Seconds of each part, and the tokens (ends of text not among them) and documents that went through."""
    tokenizer = gigatoken.Tokenizer.from_json(Path(tokenizer_file).read_text(encoding="utf-8"))
    dtype = token_dtype(load_tokenizer(tokenizer_file).vocab_size)
    _encode(tokenizer, ["warm"])
    _write_both(_Parts(), folder, np.zeros(_LENGTH, dtype))
    parts, tokens, documents = _Parts(), 0, 0
    held = np.empty(0, dtype)
    for texts in _batches(parts, paths):
        with parts.part("tokenize"):
            ids = _encode(tokenizer, texts)
        tokens += len(ids)
        documents += len(texts)
        held = np.concatenate([held, ids.astype(dtype)])
        while len(held) >= _SHARD * _LENGTH:
            _write_both(parts, folder, held[: _SHARD * _LENGTH])
            held = held[_SHARD * _LENGTH :]
    _write_both(parts, folder, held[: len(held) // _LENGTH * _LENGTH])
    return {"seconds": parts.seconds, "tokens": tokens, "documents": documents}


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])))
