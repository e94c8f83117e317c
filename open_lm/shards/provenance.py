"""Where every token of a shard came from: `provenance/<consumer>/<shard>.npz`, and `provenance/files.jsonl`, the input files by number.

The arrays of an .npz: `ends` int64 [sequences], pieces up to and including each sequence's; and for each piece, in the order of the tokens,
`file` uint32, its file's number; `at` uint64, where in the file's text its document begins (byte of its line, 0 for a file that is one
document, row of a table); `start` uint32, the first of the document's tokens in it; `length` uint32, how many. Begin and end of text
are tokens of their document; padding belongs to no piece.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

FOLDER = "provenance"
FILES = "files.jsonl"


class Provenance(NamedTuple):
    """The pieces of a shard's sequences; see the module."""

    ends: np.ndarray
    file: np.ndarray
    at: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def of_sequence(self, index: int) -> list[tuple[int, int, int, int]]:
        """(file, at, start, length) of each piece of one sequence."""
        first = int(self.ends[index - 1]) if index else 0
        columns = (self.file, self.at, self.start, self.length)
        return [(int(a), int(b), int(c), int(d)) for a, b, c, d in zip(*(c[first : int(self.ends[index])] for c in columns), strict=True)]


def to_bytes(provenance: Provenance) -> bytes:
    """The .npz. The same pieces give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in provenance._asdict().items():
            info = zipfile.ZipInfo(f"{name}.npy")  # with a fixed date
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return out.getvalue()


def from_bytes(data: bytes) -> Provenance:
    """Read an .npz. Raises ValueError when it is none of ours."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return Provenance(*(arrays[name] for name in Provenance._fields))
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"is no provenance file: {error}") from None


def files_to_bytes(files: Iterable[tuple[str, int, str]]) -> bytes:
    """files.jsonl: path, bytes and stamp (time of change or etag) of each input file, in the order of their numbers."""
    lines = (json.dumps({"file": i, "path": path, "bytes": size, "stamp": stamp}) for i, (path, size, stamp) in enumerate(files))
    return "".join(line + "\n" for line in lines).encode()


def files_from_bytes(data: bytes) -> list[str]:
    """The paths of files.jsonl by number."""
    return [str(json.loads(line)["path"]) for line in data.splitlines()]
