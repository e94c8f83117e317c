"""The shards that a run reads: from patterns and manifests to places with their counts, lengths and tokenizer.

A source is one `--train-data` (parts joined by `::`), the shards of a folder that are named one after another, or one `--dataset-manifest`.
All its sequences have the length of its first.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from open_lm import storage
from open_lm.data import counts, stream
from open_lm.data.access import Access
from open_lm.data.counts import ShardCount
from open_lm.data.places import Place, Remote, folder_of, is_elsewhere, open_place, place_of, split_parts
from open_lm.shards.manifest import MANIFEST, read_manifest, shard_url
from open_lm.shards.scan import TokenMember, decode, token_members
from open_lm.shards.tar_stream import TarStream
from open_lm.tokenizer import TOKENIZER, Holder, Tokenizer, load_tokenizer

OPENLM_EOT_ID = 0
"""What `'<|endoftext|>'` means without a tokenizer: its id in GPT-NeoX-20B, whose shards OpenLM writes with this string."""
_MANY = 1000
_LOOK = 1 << 16
_TRIED = 16
"""Shards that are looked into for one that can be read."""


@dataclass(frozen=True, eq=False)
class ShardSource:
    """One source of sequences.

    Args:
        name: as the user gave it.
        files: its shards, in order.
        parts: int64 [shards], the `::` part that each belongs to.
        tokenizer: the one given by the user or beside the shards, None where there is none.
        holders: the given one and all that lie beside its shards, with who has them.
        highest: the largest id of its first sample, and the shard and member that have it.
        repeated: shards that are named more than once.
    """

    name: str
    files: stream.ShardFiles
    parts: np.ndarray
    tokenizer: Tokenizer | None
    repeated: tuple[str, ...] = ()
    holders: tuple[Holder, ...] = ()
    highest: tuple[int, str, str] = (0, "", "")


@dataclass(frozen=True)
class Listing:
    """The shards of a source before any is opened; `counts` of those that a manifest names, `stored` where their folder was listed."""

    name: str
    shards: tuple[Place, ...]
    parts: tuple[int, ...]
    counts: tuple[ShardCount | None, ...]
    stored: tuple[storage.Stored | None, ...]

    @property
    def repeated(self) -> tuple[str, ...]:
        """Shards that are named more than once."""
        return tuple(name for name, count in Counter(map(str, self.shards)).items() if count > 1)


_Found = list[tuple[Place, storage.Stored | None]]


def join_shards(names: Sequence[str]) -> tuple[str, ...]:
    """Sources, from names: shards of a folder that are named one after another, as the shell does with a glob, are joined by `::`."""
    folders = (storage.parent(name) if _is_one_shard(name) else number for number, name in enumerate(names))
    groups = groupby(zip(folders, names), key=itemgetter(0))
    return tuple("::".join(name for _, name in group) for _, group in groups)


def _is_one_shard(name: str) -> bool:
    return name.endswith(".tar") and not any(mark in name for mark in ("*", "?", "[", "{", "::")) and not name.startswith("pipe:")


def shown(source: str) -> str:
    """A source for people: of many shards of one folder the first and the last."""
    parts = split_parts(source)
    if len(parts) < 3 or join_shards(parts) != (source,):
        return source
    return f"{parts[0]} to {parts[-1].rpartition('/')[2]} ({len(parts)} shards)"


def list_pattern(flag: str, pattern: str, access: Access | None = None) -> Listing:
    """The shards of `a::b`, each part a brace pattern or glob of shards or manifests, local or behind an url, or `pipe:` and a command.

    Raises:
        ValueError: no file matches, or a command without --allow-pipe.
        OSError: the store can't be asked.
    """
    access, name = access or Access(), shown(pattern)
    found: list[tuple[Place, int, ShardCount | None, storage.Stored | None]] = []
    for index, part in enumerate(split_parts(pattern)):
        here = _list_part(flag, name, part, access)
        if not here:
            raise ValueError(f"{flag} {name}: no file matches {part!r}; give brace patterns or globs of .tar files")
        for place, stored in here:
            if _is_manifest(place):
                found += [(shard, index, count, None) for shard, count in _named_by(flag, name, str(place), access.lose_shards)]
            else:
                found.append((place, index, None, stored))
    places, parts, told, listed = zip(*found)
    return Listing(name, places, parts, told, listed)


def _is_manifest(place: Place) -> bool:
    """Whether a file that isn't named .tar begins with the line of a manifest."""
    if place.name.endswith(".tar") or (isinstance(place, Remote) and place.is_pipe):
        return False
    try:
        with open_place(place) as file:
            line = json.loads(file.read(_LOOK).partition(b"\n")[0])
    except (OSError, ValueError):  # no manifest, or nothing that can be read, which is told when it is read as a shard
        return False
    return isinstance(line, dict) and "shard" in line


def _list_part(flag: str, pattern: str, part: str, access: Access) -> _Found:
    if part.startswith("pipe:"):
        if not access.allow_pipe:
            raise ValueError(f"{flag} {pattern}: runs a command on this machine; give --allow-pipe if it is yours")
        return [(Remote(command), None) for command in storage.expand_braces(part)]
    if is_elsewhere(part):
        return _list_remote(flag, pattern, part, access.lose_shards)
    found = [storage.local_path(url) for url in storage.expand(part)] if part else []
    absent = _first_absent(found)
    if absent is not None and absent.is_dir():
        raise ValueError(f"{flag} {pattern}: {absent} is a folder; give {absent}/*.tar")
    if absent is not None and not access.lose_shards:
        if absent.is_symlink():
            raise ValueError(f"{flag} {pattern}: {absent} is a link that leads nowhere; mend or remove it")
        raise ValueError(f"{flag} {pattern}: no file {absent}; check the pattern and its first and last number")
    return [(shard, None) for shard in found]


def _first_absent(shards: Sequence[Path]) -> Path | None:
    """The first of some paths that is no file. Of many the folders are listed, which costs a fifth of looking at each."""
    if len(shards) < _MANY:
        return next((shard for shard in shards if not shard.is_file()), None)
    files: dict[str, set[str]] = {}
    for shard in shards:
        folder, name = os.path.split(shard)
        if folder not in files:
            files[folder] = _files_in(folder or ".")
        if name not in files[folder]:
            return shard
    return None


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _list_remote(flag: str, pattern: str, part: str, lose_shards: bool) -> _Found:
    """The shards of a part in a store; a web server isn't asked, since that takes a request for each."""
    if part.startswith(("http://", "https://")):
        return [(Remote(url), None) for url in storage.expand(part)]
    try:
        found = storage.list_files(part)
    except FileNotFoundError as error:
        if lose_shards and "*" not in part:
            return [(Remote(url), None) for url in storage.expand_braces(part)]
        raise ValueError(f"{flag} {pattern}: {error}; check the pattern and its first and last number") from None
    for stored in found:
        if "*" not in part and stored.url.startswith(part.rstrip("/") + "/"):
            raise ValueError(f"{flag} {pattern}: is a folder; give {part.rstrip('/')}/*.tar")
    return [(Remote(stored.url), stored) for stored in found]


def list_manifest(flag: str, place: str, lose_shards: bool = False) -> Listing:
    """The shards of a manifest.jsonl, or of the one in a folder, local or behind an url; they lie beside it.

    Raises:
        ValueError: no such manifest, or it names a local file that is not there, unless shards may be lost.
    """
    manifest = place if place.endswith(".jsonl") or not _is_folder(place) else storage.join(place, MANIFEST)
    shards, told = zip(*_named_by(flag, place, manifest, lose_shards))
    return Listing(place, shards, (0,) * len(shards), told, (None,) * len(shards))


def _named_by(flag: str, name: str, manifest: str, lose_shards: bool) -> list[tuple[Place, ShardCount]]:
    """The shards that a manifest names."""
    entries = read_manifest(manifest, flag)
    shards = [place_of(shard_url(manifest, entry)) for entry in entries]
    absent = None if lose_shards else _first_absent([shard for shard in shards if isinstance(shard, Path)])
    if absent is not None:
        raise ValueError(f"{flag} {name}: names {absent}, which is not there; a manifest lies beside its shards")
    return [(shard, counts.of_entry(entry)) for shard, entry in zip(shards, entries)]


def _is_folder(place: str) -> bool:
    return storage.is_remote(place) or storage.local_path(place).is_dir()


def with_counts(listing: Listing, manifest: str) -> Listing:
    """A listing whose counts a manifest tells by file name, wherever it lies.

    Raises:
        ValueError: unreadable, or a shard that it does not name.
    """
    told = counts.of_manifest(manifest if manifest.endswith(".jsonl") or not _is_folder(manifest) else storage.join(manifest, MANIFEST))
    for shard in listing.shards:
        if shard.name not in told:
            raise ValueError(f"--dataset-manifest {manifest}: does not name {shard.name}, which {listing.name} has")
    return replace(listing, counts=tuple(told[shard.name] for shard in listing.shards))


def open_source(
    flag: str,
    listing: Listing,
    *,
    seq_len: int,
    key: str | None,
    tokenizer: Tokenizer | None,
    access: Access,
) -> ShardSource:
    """Find out what a source's shards hold.

    Args:
        flag: the option it came by, for messages.
        key: extension of the token members; None finds it in the first sample.
        tokenizer: the given one; else the first that lies beside the shards.
        access: where shards may be lost and the first can't be read, another one tells what they hold.

    Raises:
        ValueError: not a shard, one elsewhere that no manifest names, no sequence, sequences too short, or of two lengths; one line.
    """
    try:
        first, member = _first_member(listing.shards, key, access.lose_shards)
        key = member.extension
        beside = _tokenizers_beside(listing.shards)
        label = f"{flag} {listing.name}"
        holders: list[Holder] = [(f"--tokenizer {tokenizer.name}", tokenizer)] if tokenizer else []
        holders += [(label, one) for one in beside] if beside or tokenizer else [(label, None)]
        tokenizer = tokenizer or next(iter(beside), None)
        unknown = [shard for shard, count in zip(listing.shards, listing.counts) if count is None]
        counted = iter(counts.count_shards(unknown, key, access.scan_remote) if unknown else ())
        known = [count or next(counted) for count in listing.counts]
        eot_id = tokenizer.eot_id if tokenizer else OPENLM_EOT_ID
        decoded = decode(member, first, eot_id, None)
        tokens, highest = int(decoded.shape[1]), (int(decoded.max(initial=0)), first, member.name)
        for shard, count in zip(listing.shards, known):
            if count.tokens_per_sequence not in (None, tokens):
                raise ValueError(
                    f"{shard}: holds sequences of {count.tokens_per_sequence} tokens, the first shard of its source of {tokens}; "
                    "give shards of another length as another source"
                )
    except ValueError as error:
        raise ValueError(f"{flag} {listing.name}: {error}") from None
    if tokens < seq_len + 1:
        raise ValueError(
            f"{flag} {listing.name}: the sequences of {first} have {tokens} tokens, a row of the model needs seq_len + 1 = "
            f"{seq_len + 1}; use a model with seq_len {tokens - 1} or less, or make longer sequences"
        )
    if sum(c.sequences for c in known) == 0:
        raise ValueError(f"{flag} {listing.name}: holds no sequence")
    sequences = np.array([c.sequences for c in known], dtype=np.int64)
    sizes = tuple(s.size if c.bytes is None and s else c.bytes for c, s in zip(known, listing.stored))
    sums, stamps = tuple(c.sha256 for c in known), tuple(s.stamp if s else "" for s in listing.stored)
    files = stream.ShardFiles(listing.shards, key, sequences, sizes, tokens, eot_id, sums, stamps)
    return ShardSource(listing.name, files, np.array(listing.parts), tokenizer, listing.repeated, tuple(holders), highest)


def _first_member(shards: Sequence[Place], key: str | None, lose_shards: bool) -> tuple[str, TokenMember]:
    """The first token member of some shards, and its shard; where they may be lost, of the first among `_TRIED` that can be read."""
    why: Exception | None = None
    for shard in shards[:_TRIED] if lose_shards else shards:
        try:
            with open_place(shard) as file:
                found = next(token_members(TarStream(file, str(shard)), key, str(shard)), None)
        except (ValueError, OSError) as error:
            if not lose_shards:
                raise
            why = why or error
            continue
        if found is not None:
            return str(shard), found
    raise why or ValueError(f"{shards[0]}: holds no sequence")


def _tokenizers_beside(shards: Sequence[Place]) -> tuple[Tokenizer, ...]:
    """Every tokenizer.json in a shard's folder or the one above, the first shard's first."""
    found: dict[str, Tokenizer | None] = {}
    for shard in {folder_of(shard): shard for shard in shards}.values():
        for folder in _folders_above(shard):
            if folder not in found:
                found[folder] = _tokenizer_in(folder)
            if found[folder]:
                break
    return tuple(tokenizer for tokenizer in found.values() if tokenizer)


def _tokenizer_in(folder: str) -> Tokenizer | None:
    """The tokenizer.json of a folder, with the end of text and the chat template of the program that wrote statistics there."""
    file = storage.join(folder, TOKENIZER)
    if not storage.exists(file):
        return None
    eot_token = _eot_token(storage.join(folder, "stats.json"))
    return load_tokenizer(file) if eot_token is None else load_tokenizer(folder, eot_token)


def _folders_above(shard: Place) -> tuple[str, ...]:
    """The folder of a shard and the one above; none for a command."""
    folder = folder_of(shard) if isinstance(shard, Remote) else str(shard.absolute().parent)
    above = storage.parent(folder)
    return tuple(f for f in (folder, above) if f and not f.endswith(":/"))


def _eot_token(stats: str) -> str | None:
    about = _stats(stats).get("tokenizer")
    token = about.get("eot_token") if isinstance(about, dict) else None
    return token if isinstance(token, str) else None


def bytes_per_token(shards: Sequence[Place], sequences: int) -> float | None:
    """Bytes of text for each token, as the preprocessor's stats.json says.

    None without one, where the shards have several, or where it counts other `sequences` than are read.
    """
    folders = {folder for shard in {folder_of(s): s for s in shards}.values() for folder in _folders_above(shard)}
    files = [file for file in (storage.join(folder, "stats.json") for folder in folders) if storage.exists(file)]
    stats = _stats(files[0]) if len(files) == 1 else {}
    value = stats.get("bytes_per_token") if stats.get("sequences", sequences) == sequences else None
    return value if isinstance(value, float) and value > 0 else None


def _stats(file: str) -> dict[str, Any]:
    try:
        values = json.loads(storage.read_bytes(file))
    except (OSError, ValueError):  # shards of others have none, or something else under this name
        return {}
    return values if isinstance(values, dict) else {}
