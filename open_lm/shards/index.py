"""Where each token sequence of a local shard lies, from its tar headers alone.

A sample is a run of consecutive members with one base name up to the first dot; a repeated extension starts a new sample, so
base names may repeat. The member of a sample whose extension is the key holds its tokens: one sequence (txt, json, json.gz) or
many (npy). Members with names like `__this__` are metadata, as in webdataset, and no part of any sample.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from open_lm.shards.members import READ_EXTENSIONS, npy_layout, split_name
from open_lm.shards.tar_stream import METADATA, TarStream, open_tar

_NPY_HEADER = 256


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The token members of one shard, in file order.

    Args:
        path: the tar file.
        key: extension of the token members.
        offsets: int64 [members], first byte of the tokens (after the header of an npy).
        sizes: int64 [members], bytes of the tokens.
        ends: int64 [members], sequences up to and including each member (npy), else empty: a member is a sequence.
        length: tokens of a sequence where the headers tell it (npy), else None.
        dtypes: of each member (npy), else empty.
    """

    path: Path
    key: str
    offsets: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray
    length: int | None
    dtypes: tuple[np.dtype, ...]

    @property
    def sequences(self) -> int:
        """Sequences in the shard."""
        return int(self.ends[-1]) if len(self.ends) else len(self.offsets)

    def member_of(self, sequence: int) -> tuple[int, int]:
        """The member that holds a sequence, and its place in there."""
        if not self.dtypes:
            return sequence, 0
        member = int(self.ends.searchsorted(sequence, "right"))
        return member, sequence - (int(self.ends[member - 1]) if member else 0)

    def member_name(self, member: int) -> str:
        """Name of a member; walks the shard again."""
        names = (name for name, _, _ in list_members(self.path) if (split_name(name) or ("", ""))[1] == self.key)
        return next(name for place, name in enumerate(names) if place == member)


def token_extension(extensions: Iterable[str], shard: str) -> str:
    """The one extension of a sample that can hold tokens.

    Raises:
        ValueError: none, or several.
    """
    found = sorted(e for e in extensions if e in READ_EXTENSIONS)
    if len(found) == 1:
        return found[0]
    has = f"members {', '.join(found)}" if found else f"no member with one of the extensions {', '.join(READ_EXTENSIONS)}"
    raise ValueError(f"--data-key: the first sample of {shard} has {has}; name the extension that holds the tokens")


def list_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and size of each regular file of a local tar, metadata left out.

    Raises:
        ValueError: not a tar, or a broken or truncated one.
    """
    with open_tar(path) as file:
        plain = isinstance(file, io.BufferedReader) and os.fstat(file.fileno()).st_size > 0
        seen = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if plain else contextlib.nullcontext(file)
        with seen as headers:
            for place in TarStream(headers, str(path)).places():
                if not METADATA.match(place[0]):
                    yield place


def read_index(path: Path, key: str) -> ShardIndex:
    """Find the sequences of a local shard.

    Raises:
        ValueError: not a tar, a sample without the key, or an npy member that holds no token sequences.
        FileNotFoundError, OSError: can't be opened.
    """
    members = list(_token_members(path, key))
    offsets = np.array([m[0] for m in members], dtype=np.int64)
    sizes = np.array([m[1] for m in members], dtype=np.int64)
    if key != "npy":
        return ShardIndex(path, key, offsets, sizes, np.empty(0, dtype=np.int64), None, ())
    with open_tar(path) as file:
        headers = [_read_npy_header(file, path, place, m) for place, m in enumerate(members)]
    lengths = {length for _, _, length, _ in headers}
    if len(lengths) > 1:
        place = next(i for i, h in enumerate(headers) if h[2] != headers[0][2])
        raise ValueError(
            f"{path}, member {place + 1}: holds sequences of {headers[place][2]} tokens, the first member of {headers[0][2]}; "
            "a source has sequences of one length"
        )
    starts = np.array([h[0] for h in headers], dtype=np.int64)
    ends = np.cumsum(np.array([h[1] for h in headers], dtype=np.int64))
    dtypes = tuple(h[3] for h in headers)
    return ShardIndex(path, key, offsets + starts, sizes - starts, ends, lengths.pop() if lengths else None, dtypes)


def _token_members(path: Path, key: str) -> Iterator[tuple[int, int]]:
    """First byte and size of the token member of each sample."""
    base, seen = None, {key}
    for name, offset, size in list_members(path):
        split = split_name(name)
        if split is None:
            continue
        if split[0] != base or split[1] in seen:
            _check_has_key(path, base, seen, key)
            base, seen = split[0], set()
        seen.add(split[1])
        if split[1] == key:
            yield offset, size
    _check_has_key(path, base, seen, key)


def _check_has_key(path: Path, base: str | None, seen: set[str], key: str) -> None:
    if key not in seen:
        raise ValueError(
            f"--data-key {key}: sample {base} of {path} has only {', '.join(sorted(seen))}; name the extension that holds the tokens"
        )


def _read_npy_header(file: IO[bytes], path: Path, place: int, member: tuple[int, int]) -> tuple[int, int, int, np.dtype]:
    """Bytes of the header, sequences, tokens of a sequence, dtype."""
    offset, size = member
    file.seek(offset)
    try:
        header, (rows, length), dtype = npy_layout(file.read(min(size, _NPY_HEADER)))
    except ValueError as error:
        raise ValueError(f"{path}, member {place + 1}: {error}") from None
    if header + rows * length * dtype.itemsize != size:
        raise ValueError(f"{path}, member {place + 1}: has {size} bytes, its npy header says {header + rows * length * dtype.itemsize}")
    return header, rows, length, dtype
