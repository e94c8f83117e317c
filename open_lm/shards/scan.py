"""What a manifest says about local shards, found out from the shards themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from open_lm.shards.index import list_members, read_index, token_extension
from open_lm.shards.manifest import MANIFEST, ShardEntry, write_manifest
from open_lm.shards.members import decode_member, split_name


def first_key(path: Path) -> str | None:
    """Extension of the token members, found from the first sample; None for a shard without samples."""
    base, found = None, []
    for name, _, _ in list_members(path):
        split = split_name(name)
        if split is None:
            continue
        if base is not None and (split[0] != base or split[1] in found):
            break
        base = split[0]
        found.append(split[1])
    return token_extension(found, str(path)) if found else None


def scan_shard(path: Path, key: str | None = None) -> ShardEntry:
    """The manifest entry of a local shard: sequences, bytes, sha256 and the tokens of its first sequence.

    Raises:
        ValueError: not a shard, naming it.
    """
    key = key or first_key(path)
    index = read_index(path, key) if key else None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        length = index.length if index else None
        if index and index.sequences and length is None:
            file.seek(int(index.offsets[0]))
            try:
                length = decode_member(index.key, file.read(int(index.sizes[0])), eot_id=0).shape[1]
            except ValueError as error:
                raise ValueError(f"{path}, member {index.member_name(0)}: {error}") from None
    return ShardEntry(path.name.removesuffix(".tar"), index.sequences if index else 0, path.stat().st_size, digest, length)


def make_manifests(places: Sequence[str], key: str | None = None, overwrite: bool = False) -> list[Path]:
    """A manifest.jsonl in each folder of some shards.

    Args:
        places: folders, or tar files; of a folder all its *.tar in the order of their names.
        key: extension of the token members; default: found from the first sample of each shard.

    Returns:
        The manifests written.

    Raises:
        ValueError: no shards there, not a shard, or a manifest exists already.
    """
    by_folder: dict[Path, list[Path]] = {}
    for place in map(Path, places):
        shards = sorted(place.glob("*.tar")) if place.is_dir() else [place]
        if not shards or not all(shard.is_file() for shard in shards):
            raise ValueError(f"{place}: no shards there; give folders of .tar files, or .tar files")
        by_folder.setdefault(shards[0].parent, []).extend(shards)
    for folder in by_folder:
        if (folder / MANIFEST).exists() and not overwrite:
            raise ValueError(f"{folder / MANIFEST}: exists; give --overwrite to replace it")
    for folder, shards in by_folder.items():
        write_manifest(folder / MANIFEST, [scan_shard(shard, key) for shard in shards])
    return [folder / MANIFEST for folder in by_folder]
