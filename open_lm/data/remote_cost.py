"""What reading takes: bytes read over bytes used, and for shards from elsewhere room in the cache. Told before training starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from open_lm.data.access import Access
from open_lm.data.cache import CacheConfig, cache_config
from open_lm.data.stream import ShardFiles

_log = logging.getLogger(__name__)


def prepared(access: Access, files: tuple[ShardFiles, ...]) -> Access:
    """The same with a cache, where there are shards to put in one.

    Raises:
        ValueError: a shard that is larger than the whole cache.
    """
    if not any(one.remote for one in files):
        return replace(access, cache=None)
    cache = access.cache or cache_config(None, None)
    for one in files:
        for shard in one.remote:
            size = one.bytes[shard]
            if size is not None and size > cache.limit:
                raise ValueError(
                    f"--data-cache-size {cache.limit}: {one.paths[shard]} has {size} bytes; give more, several shards at least"
                )
    return replace(access, cache=cache)


@dataclass(frozen=True)
class RemoteCost:
    """Of the shards from elsewhere.

    Args:
        shards, bytes: all of them; bytes without those whose size nothing tells.
        open_shards, open_bytes: those that the streams of all processes are in at a time, at most.
        fetches: bytes fetched in a pass over bytes used: at most, by processes that share no cache.
        cache: where they go.
    """

    shards: int
    bytes: int
    open_shards: int
    open_bytes: int
    fetches: float
    cache: CacheConfig

    @classmethod
    def of(cls, files: tuple[ShardFiles, ...], streams: int, in_window: tuple[int, ...], cache: CacheConfig) -> RemoteCost:
        """Of some sources that so many streams read, each in so many shards of a source at a time."""
        sizes = [sorted((one.bytes[i] or 0 for i in one.remote), reverse=True) for one in files]
        shards, total = sum(map(len, sizes)), sum(map(sum, sizes))
        at_once = [size[: streams * each] for size, each in zip(sizes, in_window, strict=True)]
        # laid end to end, S shards cut by L streams give at most S + L - 1 pieces
        pieces = sum(len(size) + streams - 1 for size in sizes if size)
        return cls(shards, total, sum(map(len, at_once)), sum(map(sum, at_once)), pieces / max(1, shards), cache)

    def log_lines(self) -> list[str]:
        """For the start of the log."""
        lines = [
            f"data: {self.shards} shards ({self.bytes / 1e9:.2f} GB) come from elsewhere, each as a whole, into {self.cache.folder} "
            f"(at most {self.cache.limit / 1e9:.2f} GB)",
            f"data: the streams are in up to {self.open_shards} of them ({self.open_bytes / 1e9:.2f} GB) at a time; processes that share "
            f"the folder fetch each once a pass while these fit, processes that don't together up to {self.fetches:.1f} times as much",
        ]
        if self.open_bytes > self.cache.limit:
            remedy = "give a larger --data-cache-size, a smaller --shuffle-window or fewer --data-streams"
            lines.append(f"data: these do not fit into it, and shards will be fetched again and again; {remedy}")
        return lines


def local_lines(files: tuple[ShardFiles, ...], seq_len: int) -> list[str]:
    """For the start of the log: what is read of shards that lie here, a line for each way of reading."""
    found: dict[str, tuple[int, int]] = {}
    for one in files:
        elsewhere = set(one.remote)
        here = [i for i in range(len(one.paths)) if i not in elsewhere]
        rows = (one.tokens - 1) // seq_len
        how = "each row by itself: about 1 byte is read for each that is used"
        if one.key != "npy" and rows == 1:
            how = "each sequence, which is a row, by itself: about 1 byte is read for each that is used"
        elif one.key != "npy":
            how = f"a sequence as a whole for a row of it: 1 to {rows} bytes are read for each that is used"
        shards, size = found.get(how, (0, 0))
        found[how] = shards + len(here), size + sum(one.bytes[i] or 0 for i in here)
    return [
        f"data: {shards} shards ({size / 1e9:.2f} GB) are here and are read {how}, with any number of streams"
        for how, (shards, size) in found.items()
        if shards
    ]
