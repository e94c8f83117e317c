"""manifest.jsonl: one line for each shard of its folder, in order, with its number of sequences and, in ours, size and checksum."""

from __future__ import annotations

from open_lm.command_line import end_on_signals

end_on_signals(__name__)

import json  # noqa: E402
from collections.abc import Iterable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import orjson  # noqa: E402

from open_lm import storage  # noqa: E402

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its name without .tar, its sequences, and where known its bytes, sha256 and tokens per sequence."""

    shard: str
    num_sequences: int
    bytes: int | None = None
    sha256: str | None = None
    tokens_per_sequence: int | None = None

    def to_json(self) -> str:
        values = {k: v for k, v in vars(self).items() if v is not None}
        return json.dumps(values)


def read_manifest(url: str, flag: str = "--dataset-manifest") -> list[ShardEntry]:
    """All lines of a manifest; the last one may lack its newline, and the older key `num_chunks` is understood.

    flag: which option named it, for messages.

    Raises:
        ValueError: unreadable, or a line that is no shard, with its number.
    """
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        raise ValueError(f"{flag} {url}: no such file; make one with python -m open_lm.shards.manifest") from None
    except OSError as error:
        raise ValueError(f"{flag} {url}: can't be read: {error}") from None
    if data and not storage.is_json(data[: storage.FIRST_BYTES]):
        raise ValueError(f"{flag} {url}: {storage.instead_of('a manifest', data[: storage.FIRST_BYTES])}")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    entries = [_entry(f"{flag} {url}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise ValueError(f"{flag} {url}: names no shard")
    return entries


def _entry(place: str, line: bytes) -> ShardEntry:
    try:
        values = orjson.loads(line)  # a manifest may have 100,000 lines
        count = values["num_sequences"] if "num_sequences" in values else values["num_chunks"]
        return ShardEntry(str(values["shard"]), int(count), *map(values.get, ("bytes", "sha256", "tokens_per_sequence")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: needs `shard` and `num_sequences`: {error!r}") from None


def write_manifest(path: str | Path, entries: Iterable[ShardEntry]) -> None:
    """Write a whole manifest, or none. `path` may be remote."""
    storage.write_bytes(str(path), "".join(entry.to_json() + "\n" for entry in entries).encode("utf-8"))


def shard_url(manifest: str, entry: ShardEntry) -> str:
    """Where the shard of an entry lies: beside its manifest."""
    name = entry.shard if entry.shard.endswith(".tar") else entry.shard + ".tar"
    return storage.join(storage.parent(manifest), name)


if __name__ == "__main__":
    from open_lm.shards.manifest_command import main

    raise SystemExit(main())
