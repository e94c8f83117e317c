"""How many sequences each local shard holds: from a manifest beside it, else from its headers, read once and remembered.

What a scan finds is kept in the user's cache folder, one file for each folder of shards, under name, size and time of change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from open_lm.shards.index import read_index
from open_lm.shards.manifest import MANIFEST, ShardEntry, read_manifest
from open_lm.storage import atomic_write

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardCount:
    """A shard's sequences, and where a manifest tells them its bytes, tokens per sequence and sha256."""

    sequences: int
    bytes: int | None = None
    tokens_per_sequence: int | None = None
    sha256: str | None = None


def of_entry(entry: ShardEntry) -> ShardCount:
    """What a manifest line says."""
    return ShardCount(entry.num_sequences, entry.bytes, entry.tokens_per_sequence, entry.sha256)


def count_shards(shards: Sequence[Path], key: str) -> list[ShardCount]:
    """The counts of some local shards, in their order.

    Args:
        key: extension of the token members.

    Raises:
        ValueError: a shard that has to be scanned and is none.
    """
    known: dict[Path, dict[str, ShardCount]] = {}
    for folder in dict.fromkeys(shard.parent for shard in shards):
        known[folder] = _told(folder)
        missing = [s for s in dict.fromkeys(shards) if s.parent == folder and s.name not in known[folder]]
        if missing:
            known[folder] |= _scanned(folder, missing, key)
    return [known[shard.parent][shard.name] for shard in shards]


def _told(folder: Path) -> dict[str, ShardCount]:
    """Counts by file name from the manifest.jsonl of a folder, else from its sizes.json (name: sequences)."""
    if (folder / MANIFEST).is_file():
        entries = read_manifest(str(folder / MANIFEST))
        return {e.shard.removesuffix(".tar") + ".tar": of_entry(e) for e in entries}
    if (folder / "sizes.json").is_file():
        try:
            sizes = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
            return {str(name).removesuffix(".tar") + ".tar": ShardCount(int(n)) for name, n in sizes.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'sizes.json'}: must be one object of shard names and counts: {error}") from None
    return {}


def _cache_file(folder: Path, key: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(f"{folder.resolve()}\n{key}".encode()).hexdigest()
    return root / "open_lm" / "counts" / f"{name[:32]}.json"


def _scanned(folder: Path, shards: Sequence[Path], key: str) -> dict[str, ShardCount]:
    cache = _cache_file(folder, key)
    remembered = _read_cache(cache)
    counts, fresh = {}, 0
    for shard in shards:
        status = shard.stat()
        state = [status.st_size, status.st_mtime_ns]
        if remembered.get(shard.name, [])[:2] != state:
            if fresh == 0:
                _log.info(f"{folder}: counting the sequences of shards that no manifest names")
            remembered[shard.name] = [*state, read_index(shard, key).sequences]
            fresh += 1
        counts[shard.name] = ShardCount(remembered[shard.name][2], status.st_size)
    if fresh:
        _write_cache(cache, remembered)
    return counts


def _read_cache(cache: Path) -> dict[str, list[int]]:
    try:
        values = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no cache, or a damaged one: the shards are counted again
        return {}
    whole = isinstance(values, dict) and all(isinstance(v, list) and len(v) == 3 and {*map(type, v)} == {int} for v in values.values())
    return values if whole else {}


def _write_cache(cache: Path, values: dict[str, list[int]]) -> None:
    try:
        with atomic_write(cache, "w") as file:
            json.dump(values, file)
    except OSError as error:
        _log.warning(f"{cache}: can't keep the counts of the shards ({error}); they are counted again next time")
