"""`python -m open_lm.shards.manifest`: make the manifests of folders of shards, local or remote, or compare shards with theirs."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from open_lm import storage
from open_lm.executor import in_processes
from open_lm.params.fields import UserError, counted
from open_lm.shards.manifest import MANIFEST, ShardEntry, read_manifest, shard_url, write_manifest
from open_lm.shards.scan import differences, scan_shard


@dataclass
class Folder:
    """Shards of one folder that were asked for."""

    url: str
    shards: list[str] = field(default_factory=list)
    whole: bool = False
    """All shards of the folder, those of its manifest included."""

    @property
    def manifest(self) -> str:
        return storage.join(self.url, MANIFEST)


def folders_of(places: Sequence[str]) -> list[Folder]:
    """The shards of folders (at any depth), tar files, globs, brace patterns, and manifests (their whole folder).

    Raises:
        ValueError: no shards and no manifest there.
    """
    found: dict[str, Folder] = {}
    for place in places:
        wanted, whole = _listed(place)
        if not wanted:
            raise ValueError(f"{place}: no shards there; give folders of .tar files, or .tar files")
        for url in wanted:
            folder = found.setdefault(storage.parent(url), Folder(storage.parent(url)))
            folder.whole |= whole
            if url.endswith(".tar") and url not in folder.shards:
                folder.shards.append(url)
    return list(found.values())


def _listed(place: str) -> tuple[list[str], bool]:
    """The shards and manifests of a place, and whether their folders were asked for as a whole."""
    name = place if storage.is_remote(place) else str(storage.local_path(place))
    listed = _files(name)
    if name.rpartition("/")[2] == MANIFEST:
        folders = [storage.parent(url) for url in listed]
        return [url for folder in folders for url in _files(folder or ".") if storage.parent(url) == folder and _is_ours(url)], True
    if name in listed or any(letter in name for letter in "*?[{"):
        return [url for url in listed if url.endswith(".tar")], False
    return [url for url in listed if _is_ours(url)], True


def _files(pattern: str) -> list[str]:
    try:
        return [stored.url.removeprefix("./") for stored in storage.list_files(pattern)]
    except FileNotFoundError:
        return []


def _is_ours(url: str) -> bool:
    return url.endswith(".tar") or url.rpartition("/")[2] == MANIFEST


def make_manifests(folders: Sequence[Folder], key: str | None, overwrite: bool, workers: int | None) -> list[str]:
    """Write a manifest.jsonl into each folder.

    Args:
        key: extension of the token members; default: found from the first sample of each shard.

    Returns:
        The urls of the manifests.

    Raises:
        ValueError: not a shard, or a manifest exists already.
    """
    folders = [folder for folder in folders if folder.shards]
    problems = [problem for folder in folders for problem in storage.unwritable("PLACE", folder.manifest, urls=True)]
    if problems:
        raise UserError(problems)
    for folder in folders:
        if not overwrite and storage.exists(folder.manifest):
            raise ValueError(f"{folder.manifest}: exists; give --overwrite to replace it, or --verify to compare the shards with it")
    shards = [shard for folder in folders for shard in folder.shards]
    entries = dict[str, ShardEntry]()
    for index, entry in in_processes(functools.partial(scan_shard, key=key), shards, workers, "reading", "shards"):
        entries[shards[index]] = entry
    for folder in folders:
        write_manifest(folder.manifest, [entries[shard] for shard in folder.shards])
    return [folder.manifest for folder in folders]


def verify(folders: Sequence[Folder], key: str | None, workers: int | None) -> tuple[int, list[str]]:
    """Compare shards with their manifests.

    Returns:
        Shards compared, and what is wrong, a line for each finding that begins with the url of what it is about.
    """
    wrong: list[str] = []
    tasks: list[tuple[str, ShardEntry, str | None]] = []
    for folder in folders:
        try:
            entries = _entries(folder.manifest, wrong)
        except ValueError as error:
            wrong.append(str(error).removeprefix("manifest "))
            continue
        here = set(folder.shards)
        for url, entry in entries.items():
            if url in here:
                tasks.append((url, entry, key))
            elif folder.whole:
                wrong.append(f"{url}: is missing")
        wrong += [f"{url}: no line of {folder.manifest} names it" for url in folder.shards if url not in entries]
    for index, found in in_processes(_differences, tasks, workers, "comparing", "shards"):
        wrong += [f"{tasks[index][0]}: {what}" for what in found]
    return len(tasks), sorted(wrong)


def _entries(manifest: str, wrong: list[str]) -> dict[str, ShardEntry]:
    """The lines of a manifest by the url of their shard; a second one of the same shard is a finding."""
    entries: dict[str, ShardEntry] = {}
    for entry in read_manifest(manifest, flag="manifest"):
        url = shard_url(manifest, entry)
        if url in entries:
            wrong.append(f"{url}: {manifest} names it twice")
        entries.setdefault(url, entry)
    return entries


def _differences(task: tuple[str, ShardEntry, str | None]) -> list[str]:
    url, entry, key = task
    return differences(entry, url, key)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m open_lm.shards.manifest",
        description="Write manifest.jsonl beside shards, or compare shards with theirs. Shards are read once, as streams.",
    )
    parser.add_argument("places", nargs="+", metavar="PLACE", help="folders of .tar files, .tar files or patterns, local or s3://")
    parser.add_argument("--verify", action="store_true", help="compare bytes, checksum, count and length with the manifests that exist")
    parser.add_argument("--data-key", help="extension of the members that hold tokens (default: found from each shard)")
    parser.add_argument("--num-workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace manifests that exist")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 where a shard is not what its manifest says or can't be read or written, 2 for bad options or input."""
    options = _parser().parse_args(argv)
    try:
        if options.verify and options.overwrite:
            raise ValueError("--verify --overwrite: verifying writes nothing; give one of them")
        if options.num_workers is not None and options.num_workers < 1:
            raise ValueError(f"--num-workers {options.num_workers}: give 1 or more")
        folders = folders_of(options.places)
        if not options.verify:
            for manifest in make_manifests(folders, options.data_key, options.overwrite, options.num_workers):
                print(manifest)
            return 0
        compared, wrong = verify(folders, options.data_key, options.num_workers)
        print(*wrong, f"{counted(compared, 'shard')} compared, {counted(len(wrong), 'finding')}", sep="\n")
        return 1 if wrong else 0
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
