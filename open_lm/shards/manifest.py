"""manifest.jsonl: one line for each shard of its folder, in order, with its number of sequences and, in ours, size and checksum."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from open_lm import storage

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


def read_manifest(url: str) -> list[ShardEntry]:
    """All lines of a manifest; the last one may lack its newline, and the older key `num_chunks` is understood.

    Raises:
        ValueError: unreadable, or a line that is no shard, with its number.
    """
    try:
        lines = storage.read_bytes(url).decode("utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(f"--dataset-manifest {url}: no such file; make one with python -m open_lm.shards.manifest") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--dataset-manifest {url}: can't be read: {error}") from None
    entries = [_entry(url, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise ValueError(f"--dataset-manifest {url}: names no shard")
    return entries


def _entry(url: str, number: int, line: str) -> ShardEntry:
    try:
        values = json.loads(line)
        count = values["num_sequences"] if "num_sequences" in values else values["num_chunks"]
        optional = {k: values[k] for k in ("bytes", "sha256", "tokens_per_sequence") if values.get(k) is not None}
        return ShardEntry(str(values["shard"]), int(count), **optional)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--dataset-manifest {url}, line {number}: needs `shard` and `num_sequences`: {error!r}") from None


def write_manifest(path: str | Path, entries: Iterable[ShardEntry]) -> None:
    """Write a whole manifest, or none."""
    with storage.atomic_write(path, "w") as file:
        file.writelines(entry.to_json() + "\n" for entry in entries)


def shard_url(manifest: str, entry: ShardEntry) -> str:
    """Where the shard of an entry lies: beside its manifest."""
    name = entry.shard if entry.shard.endswith(".tar") else entry.shard + ".tar"
    return storage.join(storage.parent(manifest), name)


def main(argv: list[str] | None = None) -> int:
    """Command line: manifests for local shards that have none."""
    import argparse
    import sys

    from open_lm.shards.scan import make_manifests

    parser = argparse.ArgumentParser(prog="python -m open_lm.shards.manifest", description="Write manifest.jsonl beside local shards.")
    parser.add_argument("places", nargs="+", metavar="FOLDER_OR_SHARD", help="folders of .tar files, or .tar files")
    parser.add_argument("--data-key", help="extension of the members that hold tokens (default: found from each shard)")
    parser.add_argument("--overwrite", action="store_true", help="replace manifests that exist")
    options = parser.parse_args(argv)
    try:
        for manifest in make_manifests(options.places, options.data_key, options.overwrite):
            print(manifest)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
