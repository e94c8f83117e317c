"""The shards that a run reads: from patterns and manifests to local files with their counts, lengths and tokenizer.

A source is one `--train-data` (parts joined by `::`) or one `--dataset-manifest`. All its sequences have the length of its first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from open_lm import storage
from open_lm.data import counts, stream
from open_lm.data.counts import ShardCount
from open_lm.shards.index import token_extension
from open_lm.shards.manifest import MANIFEST, read_manifest, shard_url
from open_lm.shards.members import decode_member
from open_lm.tokenizer import Tokenizer, load_tokenizer

OPENLM_EOT_ID = 0
"""What `'<|endoftext|>'` means without a tokenizer: its id in GPT-NeoX-20B, whose shards OpenLM writes with this string."""


@dataclass(frozen=True, eq=False)
class ShardSource:
    """One source of sequences.

    Args:
        name: as the user gave it.
        files: its shards, in order.
        parts: int64 [shards], the `::` part that each belongs to.
        tokenizer: the one beside the shards or given by the user, None where there is none.
    """

    name: str
    files: stream.ShardFiles
    parts: np.ndarray
    tokenizer: Tokenizer | None


@dataclass(frozen=True)
class Listing:
    """The shards of a source before any is opened; `counts` where a manifest names them."""

    name: str
    shards: tuple[Path, ...]
    parts: tuple[int, ...]
    counts: tuple[ShardCount, ...] | None = None


def list_pattern(flag: str, pattern: str) -> Listing:
    """The shards of `a::b`, each part a brace pattern or glob.

    Raises:
        ValueError: no file matches, or a remote one.
    """
    shards: list[Path] = []
    parts: list[int] = []
    for index, part in enumerate(pattern.split("::")):
        _check_local(flag, part)
        found = [storage.local_path(url) for url in storage.expand(part)] if part else []
        if not found:
            raise ValueError(f"{flag} {pattern}: no file matches {part!r}; give brace patterns or globs of .tar files")
        for shard in found:
            if shard.is_dir():
                raise ValueError(f"{flag} {pattern}: {shard} is a folder; give {shard}/*.tar")
            if not shard.is_file():
                raise ValueError(f"{flag} {pattern}: no file {shard}; check the pattern and its first and last number")
        shards += found
        parts += [index] * len(found)
    return Listing(pattern, tuple(shards), tuple(parts))


def list_manifest(flag: str, place: str) -> Listing:
    """The shards of a manifest.jsonl, or of the one in a folder; they lie beside it.

    Raises:
        ValueError: no such manifest, or it names a file that is not there.
    """
    _check_local(flag, place)
    manifest = storage.local_path(place)
    manifest = manifest / MANIFEST if manifest.is_dir() else manifest
    entries = read_manifest(str(manifest))
    shards = tuple(storage.local_path(shard_url(str(manifest), entry)) for entry in entries)
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{flag} {place}: names {shard}, which is not there; a manifest lies beside its shards")
    return Listing(place, shards, (0,) * len(shards), tuple(counts.of_entry(entry) for entry in entries))


def _check_local(flag: str, url: str) -> None:
    if url.startswith("pipe:"):
        raise ValueError(f"{flag} {url}: pipe: is not built yet; copy the shards to a local folder")
    if storage.is_remote(url):
        raise ValueError(f"{flag} {url}: remote shards are not built yet; copy them to a local folder")


def open_source(flag: str, listing: Listing, *, seq_len: int, key: str | None, tokenizer: Tokenizer | None) -> ShardSource:
    """Find out what a source's shards hold.

    Args:
        flag: the option it came by, for messages.
        key: extension of the token members; None finds it in the first sample.
        tokenizer: None looks beside the shards.

    Raises:
        ValueError: not a shard, no sequence, sequences too short, or of two lengths; one line.
    """
    try:
        first = next(stream.samples(listing.shards), None)
        if first is None:
            raise ValueError(f"{listing.shards[0]}: holds no sequence")
        key = key or token_extension(first.members, first.shard)
        tokenizer = tokenizer or _tokenizer_beside(listing.shards[0])
        known = listing.counts or tuple(counts.count_shards(listing.shards, key))
        tokens = _length(first, key, tokenizer.eot_id if tokenizer else OPENLM_EOT_ID)
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
            f"{flag} {listing.name}: the sequences of {first.shard} have {tokens} tokens, a row of the model needs seq_len + 1 = "
            f"{seq_len + 1}; use a model with seq_len {tokens - 1} or less, or make longer sequences"
        )
    if sum(c.sequences for c in known) == 0:
        raise ValueError(f"{flag} {listing.name}: holds no sequence")
    sequences = np.array([c.sequences for c in known], dtype=np.int64)
    eot_id = tokenizer.eot_id if tokenizer else OPENLM_EOT_ID
    files = stream.ShardFiles(listing.shards, key, sequences, tuple(c.bytes for c in known), tokens, eot_id, tuple(c.sha256 for c in known))
    return ShardSource(listing.name, files, np.array(listing.parts), tokenizer)


def _length(sample: stream.Sample, key: str, eot_id: int) -> int:
    if key not in sample.members:
        raise ValueError(f"--data-key {key}: sample {sample.base} of {sample.shard} has only {', '.join(sorted(sample.members))}")
    try:
        return int(decode_member(key, sample.members[key], eot_id).shape[1])
    except ValueError as error:
        raise ValueError(f"{sample.shard}, member {sample.base}.{key}: {error}") from None


def _tokenizer_beside(shard: Path) -> Tokenizer | None:
    """The tokenizer.json in the shard's folder or the one above; its end of text as the statistics beside it name it."""
    for folder in (shard.absolute().parent, shard.absolute().parent.parent):
        if (folder / "tokenizer.json").is_file():
            return load_tokenizer(str(folder / "tokenizer.json"), _eot_token(folder / "stats.json"))
    return None


def _eot_token(stats: Path) -> str | None:
    about = _stats(stats).get("tokenizer")
    token = about.get("eot_token") if isinstance(about, dict) else None
    return token if isinstance(token, str) else None


def bytes_per_token(shards: Sequence[Path]) -> float | None:
    """Bytes of text for each token, as the preprocessor's stats.json says; None without one, or where the shards have several."""
    files = {f for s in shards for f in (s.parent / "stats.json", s.parent.parent / "stats.json") if f.is_file()}
    value = _stats(files.pop()).get("bytes_per_token") if len(files) == 1 else None
    return value if isinstance(value, float) and value > 0 else None


def _stats(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # shards of others have none, or something else under this name
        return {}
    return values if isinstance(values, dict) else {}


def check_tokenizers(sources: Sequence[ShardSource]) -> None:
    """Raises ValueError where two sources have different tokenizers; unknown ones pass."""
    known = [s for s in sources if s.tokenizer is not None]
    for source in known[1:]:
        if source.tokenizer.sha256 != known[0].tokenizer.sha256:  # type: ignore[union-attr]
            raise ValueError(
                f"--train-data {source.name}: made with another tokenizer than {known[0].name}; make the shards of all sources with one"
            )
