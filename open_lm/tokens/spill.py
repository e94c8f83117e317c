"""The file between a unit and the shards: its sequences by bucket, their pieces, its tail and its counts. Whole or absent.

Segments one after another, each with its sequences in the order of their buckets (in a bucket by their index): tokens [n, length],
ends of their pieces int64 [n], pieces [m] in narrow types, and a table of buckets int64 [buckets + 1] of sequences before each.
Then the tail (tokens, pieces), a JSON directory, and 24 bytes: its length, the CRC-32 of all before it, a magic number.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from open_lm import storage
from open_lm.tokens.pieces import PIECE, Rows

SUFFIX = ".spill"
_NAME = re.compile(rf"\d{{9}}-\d{{7}}{re.escape(SUFFIX)}")
_MAGIC = 0x4F4C4D5350494C32
_TRAILER = 24
_TOKENS_AT_ONCE = 2 << 20


def spill_path(folder: str | Path, group: int, block: int) -> Path:
    """Where a unit's sequences lie until the shards are written. The names sort as the units do."""
    return Path(folder) / f"{group:09d}-{block:07d}{SUFFIX}"


def unit_of(path: Path) -> tuple[int, int]:
    """(group, block) of a spill."""
    group, block = path.name.removesuffix(SUFFIX).split("-")
    return int(group), int(block)


class _Summed:
    """Passes bytes on, keeps their count and CRC-32."""

    def __init__(self, file: IO[bytes]):
        self._file, self.count, self.crc = file, 0, 0

    def write(self, data: Any) -> None:
        self._file.write(data)
        self.crc = zlib.crc32(data, self.crc)
        self.count += memoryview(data).nbytes


class SpillWriter:
    """Writes one spill segment by segment; it appears under its name when `close` has returned."""

    def __init__(self, path: Path, buckets: int):
        self._buckets, self._segments = buckets, list[dict[str, Any]]()
        self._context = storage.atomic_write(path, durable=False)  # a lost one is made again
        self._out = _Summed(self._context.__enter__())

    def add(self, rows: Rows, bucket_of: np.ndarray) -> None:
        """One segment: sequences with the bucket of each, int64 [n]."""
        order = np.argsort(bucket_of, kind="stable")
        starts = np.concatenate([[0], rows.ends])
        counts = np.diff(starts)[order]
        ends = np.cumsum(counts)
        index = np.repeat(starts[order] - (ends - counts), counts) + np.arange(int(counts.sum()))
        pieces, narrow = _narrowed(rows.pieces[index])
        self._segments.append({"at": self._out.count, "rows": len(order), "pieces": len(index), **narrow})
        at_once = max(1, _TOKENS_AT_ONCE // rows.tokens.shape[1])
        for start in range(0, len(order), at_once):
            self._out.write(rows.tokens[order[start : start + at_once]].data)
        for array in (ends.astype("<i8"), pieces, _starts_of_buckets(bucket_of, self._buckets)):
            self._out.write(array.data if len(array) else b"")

    def close(self, tail: np.ndarray, tail_pieces: np.ndarray, counts: dict[str, Any]) -> None:
        """Finish with the tail's tokens and pieces and the unit's counts (JSON values)."""
        directory = {
            "segments": self._segments,
            "tail": {"at": self._out.count, "tokens": len(tail), "pieces": len(tail_pieces)},
            "itemsize": tail.itemsize,
            "counts": counts,
        }
        self._out.write(tail.tobytes())
        self._out.write(tail_pieces.tobytes())
        text = json.dumps(directory).encode()
        self._out.write(text)
        self._out.write(np.array([len(text), self._out.crc, _MAGIC], "<u8").tobytes())
        self._context.__exit__(None, None, None)

    def abandon(self, error: BaseException) -> None:
        """Leave nothing behind."""
        self._context.__exit__(type(error), error, error.__traceback__)


def _narrowed(pieces: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Pieces in as few bytes as they need (short documents have many): each column less its least value. And how to read them."""
    columns = [pieces[name] for name in PIECE.names or ()]
    least = [int(column.min()) if len(column) else 0 for column in columns]
    most = [int(column.max()) if len(column) else 0 for column in columns]
    types = [np.min_scalar_type(high - low).newbyteorder("<").str for low, high in zip(least, most, strict=True)]
    out = np.empty(len(pieces), np.dtype(list(zip(PIECE.names or (), types, strict=True))))
    for name, column, low in zip(PIECE.names or (), columns, least, strict=True):
        out[name] = column - column.dtype.type(low)
    return out, {"types": types, "least": least}


def _starts_of_buckets(bucket_of: np.ndarray, buckets: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(bucket_of, minlength=buckets))]).astype("<i8")


@dataclass(frozen=True)
class Segment:
    """Where a segment's parts begin, in bytes, and how its pieces are stored: as `stored`, less their `least`."""

    tokens_at: int
    ends_at: int
    pieces_at: int
    table_at: int
    stored: np.dtype[Any]
    least: tuple[int, ...]


class OpenFiles:
    """File descriptors of the files read last, at most `most` of them."""

    def __init__(self, most: int = 256):
        self._most, self._open = most, OrderedDict[Path, int]()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            os.close(self._open.popitem()[1])

    def get(self, path: Path) -> int:
        """A descriptor, good until the next call."""
        file = self._open.get(path)
        if file is None:
            if len(self._open) >= self._most:
                os.close(self._open.popitem(last=False)[1])
            file = self._open[path] = os.open(path, os.O_RDONLY)
        else:
            self._open.move_to_end(path)
        return file


class Spill:
    """A spill to be read. Raises ValueError when it is not whole."""

    def __init__(self, path: Path, length: int, files: OpenFiles):
        self.path, self._files = path, files
        self._directory = self._read_directory()
        self.dtype = np.dtype(f"<u{self._directory['itemsize']}")
        self.row_bytes = length * self.dtype.itemsize
        self.segments = [self._segment(values) for values in self._directory["segments"]]

    @property
    def counts(self) -> dict[str, Any]:
        """The unit's counts."""
        return dict(self._directory["counts"])

    def tail(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens after the last whole sequence, and their pieces."""
        tail = self._directory["tail"]
        size = tail["tokens"] * self.dtype.itemsize
        return self._array(tail["at"], tail["tokens"], self.dtype), self._array(tail["at"] + size, tail["pieces"], PIECE)

    def bucket_sizes(self, buckets: int) -> np.ndarray:
        """int64 [buckets]: sequences in each."""
        sizes = np.zeros(buckets, np.int64)
        for segment in self.segments:
            sizes += np.diff(self._array(segment.table_at, buckets + 1, np.dtype("<i8")))
        return sizes

    def bucket(self, segment: Segment, bucket: int) -> tuple[int, int]:
        """First sequence of a bucket in a segment, and the one after its last."""
        start, stop = self._array(segment.table_at + 8 * bucket, 2, np.dtype("<i8"))
        return int(start), int(stop)

    def read_rows(self, segment: Segment, first: int, out: np.ndarray) -> None:
        """Fill `out` [n, length] with the sequences first to first + n."""
        self._fill(out, segment.tokens_at + first * self.row_bytes)

    def piece_ends(self, segment: Segment, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first + 1]: pieces before the sequence `first`, and up to and including each from there on."""
        ends = self._array(segment.ends_at + 8 * (first - 1 if first else 0), stop - first + (1 if first else 0), np.dtype("<i8"))
        return ends if first else np.concatenate([[0], ends])

    def read_pieces(self, segment: Segment, start: int, stop: int) -> np.ndarray:
        """PIECE [stop - start] of a segment."""
        stored = self._array(segment.pieces_at + segment.stored.itemsize * start, stop - start, segment.stored)
        pieces = np.empty(stop - start, PIECE)
        for name, least in zip(PIECE.names or (), segment.least, strict=True):
            pieces[name] = stored[name]
            pieces[name] += PIECE[name].type(least)
        return pieces

    def _read_directory(self) -> dict[str, Any]:
        file = self._files.get(self.path)
        size = os.fstat(file).st_size
        trailer = os.pread(file, _TRAILER, max(0, size - _TRAILER))
        length, _, magic = np.frombuffer(trailer.ljust(_TRAILER, b"\0"), "<u8")
        if magic != _MAGIC:
            raise ValueError(f"{self.path}: is not a whole spill")
        return dict(json.loads(os.pread(file, int(length), size - _TRAILER - int(length))))

    def _segment(self, values: dict[str, Any]) -> Segment:
        ends = values["at"] + values["rows"] * self.row_bytes
        pieces = ends + 8 * values["rows"]
        stored = np.dtype(list(zip(PIECE.names or (), values["types"], strict=True)))
        return Segment(values["at"], ends, pieces, pieces + stored.itemsize * values["pieces"], stored, tuple(values["least"]))

    def _array(self, at: int, count: int, dtype: np.dtype[Any]) -> np.ndarray:
        out = np.empty(count, dtype)
        self._fill(out, at)
        return out

    def _fill(self, out: np.ndarray, at: int) -> None:
        if not out.nbytes:
            return
        file, view, done = self._files.get(self.path), out.view(np.uint8).reshape(-1).data, 0
        while done < out.nbytes:
            got = os.preadv(file, [view[done:]], at + done)
            if not got:
                raise ValueError(f"{self.path}: ends early")
            done += got


def is_whole(path: Path) -> bool:
    """True for a spill whose bytes are those that were written; reads all of it."""
    crc, size = 0, path.stat().st_size
    with open(path, "rb") as file:
        left = size - _TRAILER
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        trailer = file.read()
    return len(trailer) == _TRAILER and np.frombuffer(trailer, "<u8")[1:].tolist() == [crc, _MAGIC]


def spills_in(folder: str | Path) -> Iterator[Path]:
    """The spills of a folder, in the order of their units."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))
    return (Path(folder) / name for name in names)
