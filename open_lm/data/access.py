"""How shards are reached, and what happens to those that can't be read: the part of the options that reading needs."""

from __future__ import annotations

from dataclasses import dataclass

from open_lm.data.cache import CacheConfig, cache_config
from open_lm.params.data import DataParams


@dataclass(frozen=True)
class Access:
    """What is allowed and checked.

    Args:
        allow_pipe: run the commands of `pipe:` places.
        scan_remote: read shards elsewhere that no manifest names, to count them.
        verify: compare each shard's sha256 with its manifest when it is opened, not only when it is fetched.
        lose_shards, lose_members: mask the rows of shards, and of single members, that can't be read, instead of stopping.
        cache: folder for shards from elsewhere; None for a private one, made when it is needed.
    """

    allow_pipe: bool = False
    scan_remote: bool = False
    verify: bool = False
    lose_shards: bool = False
    lose_members: bool = False
    cache: CacheConfig | None = None


DEFAULT_ACCESS = Access()


def access_of(params: DataParams) -> Access:
    """What the options say. Raises ValueError for an impossible cache."""
    asked = params.data_cache is not None or params.data_cache_size is not None
    return Access(
        allow_pipe=params.allow_pipe,
        scan_remote=params.scan_remote_shards,
        verify=params.verify_shards,
        lose_shards=params.data_tolerate_error_p > 0,
        lose_members=params.data_tolerate_error_p > 0 and params.ignore_parse_errors,
        cache=cache_config(params.data_cache, params.data_cache_size) if asked else None,
    )
