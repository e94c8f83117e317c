"""How many sequences each shard holds: from a manifest beside it, else from the shard itself, read once and remembered.

Local shards are read by their headers; shards elsewhere as a whole, and only when that is asked for. What a scan finds is kept in the
user's cache folder, one file for each folder of shards, under name, size and what changes with the content (mtime, ETag).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_lm import storage
from open_lm.data.places import Place, Remote, folder_of
from open_lm.params.fields import counted
from open_lm.progress import Progress
from open_lm.shards.index import read_index
from open_lm.shards.manifest import MANIFEST, ShardEntry, read_manifest
from open_lm.shards.scan import scan_shard
from open_lm.storage import atomic_write

_log = logging.getLogger(__name__)
_AT_ONCE = 4
_VERSION = 2
"""Of what a scan finds: version 1 counted no further than the first end mark of a shard."""


@dataclass(frozen=True)
class ShardCount:
    """A shard's sequences, and where a manifest or a scan tells them its bytes, tokens per sequence and sha256."""

    sequences: int
    bytes: int | None = None
    tokens_per_sequence: int | None = None
    sha256: str | None = None


def of_entry(entry: ShardEntry) -> ShardCount:
    """What a manifest line says."""
    return ShardCount(entry.num_sequences, entry.bytes, entry.tokens_per_sequence, entry.sha256)


def of_manifest(manifest: str) -> dict[str, ShardCount]:
    """What a manifest says, by file name. Raises ValueError: unreadable."""
    return {e.shard.removesuffix(".tar") + ".tar": of_entry(e) for e in read_manifest(manifest)}


def count_shards(shards: Sequence[Place], key: str, scan_remote: bool = False) -> list[ShardCount]:
    """The counts of some shards, in their order.

    Args:
        key: extension of the token members.
        scan_remote: read shards elsewhere that no manifest names, as a whole.

    Raises:
        ValueError: a shard that has to be scanned and is none; one elsewhere that no manifest names.
        OSError: can't be read.
    """
    folders, names = [folder_of(shard) for shard in shards], [shard.name for shard in shards]
    by_folder: dict[str, dict[str, Place]] = {}
    for folder, name, shard in zip(folders, names, shards):
        by_folder.setdefault(folder, {})[name] = shard
    known: dict[str, dict[str, ShardCount]] = {}
    for folder, here in by_folder.items():
        known[folder] = _told(folder) if folder else {}
        missing = [shard for name, shard in here.items() if name not in known[folder]]
        local = [shard for shard in missing if isinstance(shard, Path)]
        remote = [shard for shard in missing if isinstance(shard, Remote)]
        if remote and (not scan_remote or not folder):
            raise ValueError(_unknown(folder, remote, bool(known[folder])))
        known[folder] |= _scanned(Path(folder), local, key) if local else {}
        known[folder] |= _scanned_remote(folder, remote, key) if remote else {}
    return [known[folder][name] for folder, name in zip(folders, names)]


def _unknown(folder: str, shards: Sequence[Remote], has_counts: bool) -> str:
    if not folder:
        return f"{shards[0]}: how many sequences it gives is unknown; name a manifest that has {shards[0].name} by --dataset-manifest"
    what = f"the manifest beside it does not name {len(shards)} of the shards" if has_counts else "there is no manifest.jsonl beside it"
    make = f"make one with `python -m open_lm.shards.manifest {'--overwrite ' if has_counts else ''}{folder}`, "
    if folder.startswith(("http://", "https://")):
        make = "name one by --dataset-manifest, "
    return f"{shards[0]}: {what}; {make}or give --scan-remote-shards, which reads them once to count"


def _told(folder: str) -> dict[str, ShardCount]:
    """Counts by file name from the manifest.jsonl of a folder, else from its sizes.json (name: sequences)."""
    manifest, sizes = (storage.join(folder, name) for name in (MANIFEST, "sizes.json"))
    if storage.exists(manifest):
        return of_manifest(manifest)
    if storage.exists(sizes):
        try:
            values = json.loads(storage.read_bytes(sizes))
            return {str(name).removesuffix(".tar") + ".tar": ShardCount(int(n)) for name, n in values.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{sizes}: must be one object of shard names and counts: {error}") from None
    return {}


def _cache_file(folder: str, key: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(f"{folder}\n{key}\n{_VERSION}".encode()).hexdigest()
    return root / "open_lm" / "counts" / f"{name[:32]}.json"


def _scanned(folder: Path, shards: Sequence[Path], key: str) -> dict[str, ShardCount]:
    """Local shards: [bytes, mtime in ns, sequences] are remembered."""
    cache = _cache_file(str(folder.resolve()), key)
    remembered = _read_cache(cache, (int, int, int))
    counts, fresh = {}, 0
    with Progress("counting sequences", len(shards), "shards") as shown:
        for shown.done, shard in enumerate(shards):
            if not shard.is_file():
                raise ValueError(f"{shard}: no such file, and no manifest says how many sequences would be lost with it")
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


def _scanned_remote(folder: str, shards: Sequence[Remote], key: str) -> dict[str, ShardCount]:
    """Shards elsewhere: [bytes, stamp, sequences, tokens a sequence, sha256] are remembered. One process scans, the others wait for it."""
    cache = _cache_file(folder, key)
    with _alone(cache), ThreadPoolExecutor(_AT_ONCE) as pool:
        remembered = _read_cache(cache, (int, str, int, int, str))
        states: dict[Remote, list[Any]] = {
            shard: [stored.size, stored.stamp] for shard, stored in zip(shards, pool.map(storage.stat, shards))
        }
        fresh = [shard for shard in shards if remembered.get(shard.name, [])[:2] != states[shard]]
        if fresh:
            size = sum(states[shard][0] for shard in fresh) / 1e9
            _log.info(f"{folder}: reading {counted(len(fresh), 'shard')} ({size:.2f} GB) that no manifest names, to count their sequences")
        entries = pool.map(lambda shard: scan_shard(shard, key), fresh)
        for shard, entry in zip(fresh, Progress("counting sequences", len(fresh), "shards").over(entries)):
            length = entry.tokens_per_sequence or 0
            remembered[shard.name] = [*states[shard], entry.num_sequences, length, entry.sha256 or ""]
        if fresh:
            _write_cache(cache, remembered)
    found = {shard.name: remembered[shard.name] for shard in shards}
    return {name: ShardCount(v[2], v[0], v[3] or None, v[4]) for name, v in found.items()}


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """One process at a time, where the folder can be written."""
    with contextlib.ExitStack() as stack:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(cache.with_suffix(".lock"), "a"))
        except OSError:  # `_write_cache` warns
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_cache(cache: Path, kinds: tuple[type, ...]) -> dict[str, list[Any]]:
    try:
        values = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no cache, or a damaged one: the shards are counted again
        return {}
    whole = isinstance(values, dict) and all(_is_of(value, kinds) for value in values.values())
    return values if whole else {}


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, list) and tuple(type(item) for item in value) == kinds


def _write_cache(cache: Path, values: dict[str, list[Any]]) -> None:
    try:
        with atomic_write(cache, "w") as file:
            json.dump(values, file)
    except OSError as error:
        _log.warning(f"{cache}: can't keep the counts of the shards ({error}); they are counted again next time")
