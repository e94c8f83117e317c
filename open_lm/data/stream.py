"""Rows out of shards by their place: `ShardReader` finds a row through the shard's index and reads that row's bytes only; a shard from
elsewhere is fetched as a whole first.
"""

from __future__ import annotations

import hashlib
import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np

from open_lm.data.cache import CacheError, Wanted
from open_lm.data.fetching import Fetcher
from open_lm.data.places import Place, Remote
from open_lm.shards.index import ShardIndex, read_index
from open_lm.shards.members import MASKED, decode_member
from open_lm.shards.tar_stream import open_unpacked
from open_lm.storage import StorageError

_OPEN_FILES = 64
"""More where more shards are read in turns, up to a quarter of what the system allows a process."""
_DECODED_BYTES = 64 << 20
_OPENINGS = 5
"""Times that a shard is fetched because another process removed it from the cache before it was opened."""


class DamagedShardError(ValueError):
    """A shard that is not what its manifest says, or no whole shard."""


class DamagedMemberError(ValueError):
    """A member that holds no sequence, or not as it should."""


@dataclass(frozen=True, eq=False)
class ShardFile:
    """One shard as its source knows it. What a `ShardReader` has open it knows by this object, so keep the object of a shard.

    Args:
        sequences: how many it must hold.
        bytes: its size, None where nothing tells it.
        tokens: of each sequence.
        eot_id: the id that stands for the string `'<|endoftext|>'`.
        sha256: None where nothing tells it.
        stamp: of one elsewhere, what changes with its content; "" if unknown.
    """

    path: Place
    key: str
    sequences: int
    bytes: int | None
    tokens: int
    eot_id: int | None
    sha256: str | None = None
    stamp: str = ""

    @property
    def wanted(self) -> Wanted:
        """What to fetch, of a shard elsewhere."""
        return Wanted(cast(Remote, self.path), self.bytes, self.sha256, self.stamp)


@dataclass(frozen=True, eq=False)
class ShardFiles:
    """The shards of one source, in columns as long as `paths`; see `ShardFile`. `sha256` and `stamps` may be empty."""

    paths: tuple[Place, ...]
    key: str
    sequences: np.ndarray
    bytes: tuple[int | None, ...]
    tokens: int
    eot_id: int | None
    sha256: tuple[str | None, ...] = ()
    stamps: tuple[str, ...] = ()

    def __getitem__(self, shard: int) -> ShardFile:
        sha256, stamp = self.sha256[shard] if self.sha256 else None, self.stamps[shard] if self.stamps else ""
        known = (int(self.sequences[shard]), self.bytes[shard], self.tokens, self.eot_id, sha256, stamp)
        return ShardFile(self.paths[shard], self.key, *known)

    @property
    def remote(self) -> list[int]:
        """The shards that lie elsewhere."""
        return [i for i, path in enumerate(self.paths) if isinstance(path, Remote)]


K = TypeVar("K")
V = TypeVar("V")


class Kept(Generic[K, V]):
    """The values used last, `limit` of them."""

    def __init__(self, limit: int, dropped: Callable[[V], Any] = lambda value: None):
        self._values: OrderedDict[K, V] = OrderedDict()
        self._limit, self._dropped = limit, dropped

    def find(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> V:
        self._values[key] = value
        if len(self._values) > self._limit:
            self._dropped(self._values.popitem(last=False)[1])
        return value

    def clear(self) -> None:
        while self._values:
            self._dropped(self._values.popitem()[1])


def _open_files(shards_at_once: int) -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(_OPEN_FILES, shards_at_once if allowed == resource.RLIM_INFINITY else min(shards_at_once, allowed // 4))


class ShardReader:
    """Rows of shards. A row is `seq_len + 1` tokens; row i of a sequence begins at token `i * seq_len`.

    Args:
        seq_len: tokens of a row less one.
        vocab_size: ids from here on are an error.
        shards_at_once: shards whose indexes are kept; as many as are read in turns.
        fetcher: for shards from elsewhere; closed with the reader.
        verify: compare the sha256 of each shard, where it is known.
    """

    def __init__(self, seq_len: int, vocab_size: int, shards_at_once: int, fetcher: Fetcher | None = None, verify: bool = False):
        self._seq_len, self.vocab_size = seq_len, vocab_size
        self._fetcher, self._verify = fetcher, verify
        self._indexes: Kept[ShardFile, ShardIndex] = Kept(shards_at_once)
        self._files: Kept[ShardFile, int] = Kept(_open_files(shards_at_once), os.close)
        self._long: Kept[tuple[ShardFile, int], np.ndarray] | None = None

    def close(self) -> None:
        """Close the open files, and end what is on its way."""
        self._files.clear()
        if self._fetcher:
            self._fetcher.close()

    def read_row(self, shard: ShardFile, row: int, out: np.ndarray) -> None:
        """Put the tokens of one row of a shard into `out`: [seq_len + 1], a signed integer; masked positions are `MASKED`.

        Raises:
            DamagedShardError: no whole shard, or another size, checksum, number or length of sequences than told.
            DamagedMemberError: a member that holds no sequence of that length.
            ValueError: an id beyond the vocabulary.
            OSError: can't be read.
        """
        self.put_row(shard, row, out)
        if int(out.max()) >= self.vocab_size:
            index = self._indexes.find(shard)
            assert index is not None
            self._check_ids(shard, out, index, index.member_of(row // ((shard.tokens - 1) // self._seq_len))[0])

    def put_row(self, shard: ShardFile, row: int, out: np.ndarray) -> None:
        """As `read_row`, but ids of uint16 may be beyond the vocabulary: look at the largest of many rows at once, that is cheaper."""
        index = self._indexes.find(shard)
        if index is None:
            index = self._indexes.put(shard, self._index(shard))
        sequence, part = divmod(row, (shard.tokens - 1) // self._seq_len)
        start = part * self._seq_len
        member, place = index.member_of(sequence)
        if index.dtypes:
            dtype = index.dtypes[member]
            first = int(index.offsets[member]) + (place * shard.tokens + start) * dtype.itemsize
            tokens = np.frombuffer(self._bytes(shard, first, (self._seq_len + 1) * dtype.itemsize), dtype)
        else:
            tokens = self._decoded(shard, index, member)[start : start + self._seq_len + 1]
        if tokens.dtype != np.uint16:
            self._check_ids(shard, tokens, index, member)
        out[:] = tokens

    def _here(self, shard: ShardFile, use: Callable[[Path], V]) -> V:
        """What `use` makes of the shard's local file."""
        if isinstance(shard.path, Path):
            return use(shard.path)
        assert self._fetcher is not None, f"{shard.path}: nothing fetches it"
        for attempt in range(1, _OPENINGS + 1):
            try:
                return use(self._fetcher.path(shard.wanted))
            except StorageError:
                raise
            except FileNotFoundError:
                if attempt == _OPENINGS:
                    raise CacheError(
                        f"{shard.path}: is removed from the cache as soon as it is there; give a larger --data-cache-size"
                    ) from None
            except OSError as error:
                raise CacheError(f"{shard.path}: can't be read in the cache: {error}") from error
        raise AssertionError

    def _index(self, shard: ShardFile) -> ShardIndex:
        def read(path: Path) -> ShardIndex:
            size = path.stat().st_size
            if shard.bytes is not None and size != shard.bytes:
                raise ValueError(f"{path}: has {size} bytes, its manifest says {shard.bytes}; copy it again, or make a new manifest")
            if self._verify and shard.sha256 is not None:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != shard.sha256:
                    raise ValueError(f"{path}: has sha256 {found}, its manifest says {shard.sha256}; copy it again, or make a new manifest")
            try:
                return read_index(path, shard.key)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), str(shard.path))) from None

        try:
            index = self._here(shard, read)
        except CacheError:
            raise
        except ValueError as error:
            raise DamagedShardError(error) from None
        if index.sequences != shard.sequences:
            raise DamagedShardError(
                f"{shard.path}: holds {index.sequences} sequences, its manifest says {shard.sequences}; "
                "make a new one with python -m open_lm.shards.manifest"
            )
        if index.length is not None and index.length != shard.tokens:
            raise DamagedShardError(_wrong_length(shard, index, 0, index.length))
        return index

    def _bytes(self, shard: ShardFile, offset: int, size: int) -> bytes:
        file = self._files.find(shard)
        if file is None:
            file = self._files.put(shard, self._here(shard, open_unpacked))
        data = os.pread(file, size, offset)
        if len(data) != size:
            raise DamagedShardError(
                f"{shard.path}: ends at byte {offset + len(data)}, before a member's end; it was cut since it was opened"
            )
        return data

    def _decoded(self, shard: ShardFile, index: ShardIndex, member: int) -> np.ndarray:
        """[tokens] of a member with one sequence. Sequences of several rows are kept for the next row."""

        if shard.tokens <= 2 * self._seq_len:
            return self._decode(shard, index, member)
        if self._long is None:
            self._long = Kept(max(1, _DECODED_BYTES // (8 * shard.tokens)))
        tokens = self._long.find((shard, member))
        return self._long.put((shard, member), self._decode(shard, index, member)) if tokens is None else tokens

    def _decode(self, shard: ShardFile, index: ShardIndex, member: int) -> np.ndarray:
        data = self._bytes(shard, int(index.offsets[member]), int(index.sizes[member]))
        try:
            tokens = decode_member(shard.key, data, shard.eot_id)[0]
        except ValueError as error:
            raise DamagedMemberError(f"{shard.path}, member {_member_name(index, member)}: {error}") from None
        if len(tokens) != shard.tokens:
            raise DamagedMemberError(_wrong_length(shard, index, member, len(tokens)))
        return tokens

    def _check_ids(self, shard: ShardFile, tokens: np.ndarray, index: ShardIndex, member: int) -> None:
        high, low = int(tokens.max()), int(tokens.min()) if tokens.dtype.kind == "i" else 0
        if high < self.vocab_size and low >= (-self.vocab_size if index.dtypes else MASKED):
            return
        bad = high if high >= self.vocab_size else low
        raise ValueError(beyond_vocabulary(str(shard.path), _member_name(index, member), bad, self.vocab_size))


def beyond_vocabulary(shard: str, member: str, token: int, vocab_size: int) -> str:
    """What is wrong with an id."""
    return (
        f"{shard}, member {member}: token id {token} is outside the vocabulary of {vocab_size}; "
        "use a model with a larger vocabulary, or the tokenizer that belongs to the model"
    )


def _member_name(index: ShardIndex, member: int) -> str:
    try:
        return index.member_name(member)
    except FileNotFoundError:  # gone from the cache since it was opened
        return f"number {member + 1}"


def _wrong_length(shard: ShardFile, index: ShardIndex, member: int, length: int) -> str:
    return (
        f"{shard.path}, member {_member_name(index, member)}: holds a sequence of {length} tokens, the first of its source has "
        f"{shard.tokens}; "
        "give shards of another length as another source"
    )
