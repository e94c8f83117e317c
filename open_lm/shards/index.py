"""Where each token sequence of a local shard lies, from its tar headers alone.

A sample is a run of consecutive members with one base name up to the first dot; a repeated extension starts a new sample, so
base names may repeat. The member of a sample whose extension is the key holds its tokens: one sequence (txt, json, json.gz) or
many (npy). Members with names like `__this__` are metadata, as in webdataset, and no part of any sample.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_lm.shards.members import READ_EXTENSIONS, npy_layout, split_name
from open_lm.shards.tar import walk_headers
from open_lm.shards.tar_stream import METADATA, no_tar

_BLOCK = 512
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
    for name, offset, size in _walk(path):
        if not METADATA.match(name):
            yield name, offset, size


def _walk(path: Path) -> Iterator[tuple[str, int, int]]:
    """Plain ustar and GNU headers by hand, ten times faster than tarfile, which gets the shards with any other header."""
    with path.open("rb") as file:
        total = file.seek(0, io.SEEK_END)
        if total < _BLOCK:
            file.seek(0)
            raise ValueError(f"{path}: {no_tar(file.read())}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[257:262] != b"ustar" or data[156:157] not in (b"0", b"\0", b"5"):
                yield from ((m.name, m.offset, m.size) for m in walk_headers(path))
                return
            yield from _walk_plain(path, data, total)


def _walk_plain(path: Path, data: mmap.mmap, total: int) -> Iterator[tuple[str, int, int]]:
    offset = 0
    while offset + _BLOCK <= total and data[offset] != 0:
        header = data[offset : offset + _BLOCK]
        kind = header[156:157]
        if kind not in b"0\x005":  # a long name or the like: tarfile knows what follows, from this byte on
            yield from _walk_rest(path, offset)
            return
        try:
            if header[257:262] != b"ustar":
                raise ValueError
            size = int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            raise ValueError(f"{path}: no tar header at byte {offset}; the file is damaged") from None
        name = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        offset += _BLOCK
        if offset + size > total:
            raise ValueError(f"{path}: ends inside its member {name.decode(errors='replace')}; the file is not whole")
        if kind != b"5":
            yield name.decode("utf-8", "surrogateescape"), offset, size
        offset += -(-size // _BLOCK) * _BLOCK


def _walk_rest(path: Path, start: int) -> Iterator[tuple[str, int, int]]:
    return ((m.name, m.offset, m.size) for m in walk_headers(path) if m.offset > start)


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
    with path.open("rb") as file:
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


def _read_npy_header(file: io.BufferedReader, path: Path, place: int, member: tuple[int, int]) -> tuple[int, int, int, np.dtype]:
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
