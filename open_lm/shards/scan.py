"""What a manifest says about shards, found out from the shards themselves: each is read once, as a stream, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from open_lm import storage
from open_lm.shards.index import token_extension
from open_lm.shards.manifest import ShardEntry
from open_lm.shards.members import decode_member
from open_lm.shards.tar_stream import TarStream, samples


class TokenMember(NamedTuple):
    """The member of a sample that holds its tokens."""

    extension: str
    name: str
    data: bytes
    others: int
    """Further members of the sample."""


def token_members(stream: TarStream, key: str | None, shard: str) -> Iterator[TokenMember]:
    """The token members of a shard, in order.

    Args:
        key: their extension; default: found from the first sample.
        shard: for messages.

    Raises:
        ValueError: not a shard, or a sample without the key.
    """
    for sample in samples(stream):
        key = key or token_extension(sample, shard)
        if key not in sample:
            name = next(iter(sample.values())).name
            raise ValueError(
                f"--data-key {key}: the sample of {name} in {shard} has only {', '.join(sorted(sample))}; "
                "name the extension that holds the tokens"
            )
        yield TokenMember(key, sample[key].name, sample[key].data, len(sample) - 1)


def decode(member: TokenMember, shard: str, eot_id: int | None, length: int | None) -> np.ndarray:
    """The sequences of a member, as `decode_member` gives them.

    Args:
        length: tokens of a sequence, where known.

    Raises:
        ValueError: no token sequences, or of another length, with shard and member.
    """
    try:
        rows = decode_member(member.extension, member.data, eot_id)
    except ValueError as error:
        raise ValueError(f"{shard}, member {member.name}: {error}") from None
    if length is not None and rows.shape[1] != length:
        raise ValueError(
            f"{shard}, member {member.name}: holds sequences of {rows.shape[1]} tokens, the first member of {length}; "
            "a shard has sequences of one length"
        )
    return rows


def scan_shard(url: str, key: str | None = None, thorough: bool = False) -> ShardEntry:
    """The manifest entry of a shard: sequences, bytes, sha256, and the tokens of a sequence.

    Args:
        key: extension of the token members; default: found from the first sample.
        thorough: decode every list of tokens, not the first one only.

    Raises:
        ValueError: not a shard, naming it.
        OSError: can't be read.
    """
    sequences, length = 0, None
    with storage.open_read(url) as file:
        stream = TarStream(file, url)
        for member in token_members(stream, key, url):
            if member.extension != "npy" and length is not None and not thorough:
                sequences += 1
                continue
            rows = decode(member, url, 0, length)
            sequences, length = sequences + len(rows), rows.shape[1]
    return ShardEntry(url.rpartition("/")[2].removesuffix(".tar"), sequences, stream.size, stream.sha256, length)


def differences(told: ShardEntry, url: str, key: str | None = None) -> list[str]:
    """What is wrong with a shard, measured by its manifest line; nothing for a good one. What the line leaves open is not compared."""
    try:
        found = scan_shard(url, key, thorough=True)
    except FileNotFoundError:
        return ["is missing"]
    except (ValueError, OSError) as error:
        return [" ".join(str(error).removeprefix(url).lstrip(":, ").split())]
    names = {"bytes": "bytes", "sha256": "sha256", "num_sequences": "sequences", "tokens_per_sequence": "tokens a sequence"}
    return [
        f"has {getattr(found, field)} {words}, its manifest says {getattr(told, field)}"
        for field, words in names.items()
        if getattr(told, field) not in (None, getattr(found, field))
    ]
