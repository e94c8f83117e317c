"""Shards of one format to shards of another: the same sequences in the same order, under the same shard names.

in    `<input>/**/<shard>.tar`, local or remote, in the order of their manifest where there is one
out   `<output>/**/<shard>.tar`, a manifest.jsonl in each folder, copies of tokenizer.json and the provenance, stats.json with its new
      format, and `conversion.jsonl`, which says what each shard was made of; by it an interrupted conversion goes on
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_lm import storage
from open_lm.executor import in_processes
from open_lm.params.fields import UserError, counted
from open_lm.shards import provenance
from open_lm.shards.conversion import COPIED, STATS, Conversion, Line
from open_lm.shards.convert_shard import ShardTask, convert_shard
from open_lm.shards.manifest import MANIFEST, ShardEntry, read_manifest, shard_url, write_manifest
from open_lm.shards.members import READ_EXTENSIONS, Format, token_dtype
from open_lm.tokenizer import TOKENIZER, load_tokenizer


@dataclass(frozen=True)
class ConvertOptions:
    """conversion"""

    input_dir: str | None = None
    """Folder of shards, at any depth below it, local or s3://."""
    output_dir: str | None = None
    """A new local folder; shards keep their names and folders."""
    format: Format = "npy"
    """Members of the new shards: txt (OpenLM), json.gz (DCLM) or npy (small and quick to read)."""
    data_key: str | None = None
    """Extension of the members that hold tokens. Default: found from each shard."""
    tokenizer: str | None = None
    """The shards' tokenizer, a tokenizer.json, a folder that holds one, or a Hugging Face name: for OpenLM's '<|endoftext|>' strings."""
    eot_id: int | None = None
    """Id of end of text, in place of --tokenizer."""
    num_workers: int | None = None
    """Processes. Default: all cores."""
    overwrite: bool = False
    """Replace what an earlier conversion put into the output folder."""


@dataclass(frozen=True)
class Summary:
    """What a conversion did."""

    shards: int
    kept: int
    """Shards of an interrupted conversion that were whole."""
    sequences: int
    bytes_in: int
    bytes_out: int
    left_out: int
    """Members of samples beside those that hold tokens; they are not converted."""

    def __str__(self) -> str:
        lines = [
            f"{counted(self.shards, 'shard')} ({self.kept:,} of them made earlier), {counted(self.sequences, 'sequence')}",
            f"{self.bytes_in:,} bytes in, {self.bytes_out:,} bytes out",
        ]
        if self.left_out:
            lines.append(f"left out, since they hold no tokens: {counted(self.left_out, 'member')}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Source:
    """A shard to be converted: its path below the input folder without .tar, and what its manifest says, if there is one."""

    name: str
    stored: storage.Stored
    told: ShardEntry | None


class Input:
    """What lies below the input folder.

    Raises:
        ValueError: no shards there, or others than their manifests name.
    """

    def __init__(self, folder: str):
        try:
            listed = storage.list_files(folder.rstrip("/") + "/")
        except FileNotFoundError:
            listed = []
        except ValueError as error:  # a link that leads nowhere
            raise ValueError(f"--input-dir {error}") from None
        self.files = {_below(folder, stored.url): stored for stored in listed}
        shards = {name: stored for name, stored in self.files.items() if name.endswith(".tar")}
        if not shards:
            raise ValueError(f"--input-dir {folder}: no shards there; give a folder of .tar files")
        self.sources = [
            source
            for parent in dict.fromkeys(storage.parent(name) for name in self.files if name in shards or name.endswith(MANIFEST))
            for source in self._of_folder(parent, {name: stored for name, stored in shards.items() if storage.parent(name) == parent})
        ]

    def _of_folder(self, parent: str, shards: dict[str, storage.Stored]) -> list[Source]:
        manifest = self.files.get(storage.join(parent, MANIFEST))
        if manifest is None:
            return [Source(name.removesuffix(".tar"), stored, None) for name, stored in shards.items()]
        told = {shard_url(storage.join(parent, MANIFEST), entry): entry for entry in read_manifest(manifest.url, flag="--input-dir:")}
        wrong = [f"{name} is missing" for name in told if name not in shards]
        wrong += [f"no line names {name}" for name in shards if name not in told]
        if wrong:
            more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
            raise ValueError(
                f"--input-dir: {manifest.url} does not tell its folder: {', '.join(wrong[:3])}{more}; "
                "see python -m open_lm.shards.manifest --verify"
            )
        return [Source(name.removesuffix(".tar"), shards[name], entry) for name, entry in told.items()]


def _below(folder: str, url: str) -> str:
    """The path of a file from its folder on."""
    if storage.is_remote(folder):
        return url.removeprefix(folder.rstrip("/") + "/")
    return Path(url).relative_to(storage.local_path(folder)).as_posix()


def _check(options: ConvertOptions) -> tuple[str, Path]:
    """The two folders. Raises UserError with every value that can't be."""
    problems = []
    if not options.input_dir:
        problems.append("--input-dir: missing; give a folder of shards")
    if not options.output_dir:
        problems.append("--output-dir: missing; give a new folder")
    elif problem := storage.unwritable("--output-dir", options.output_dir, folder=True):
        problems += problem
    elif options.input_dir and not storage.is_remote(options.input_dir):
        given, out = (storage.local_path(folder).resolve() for folder in (options.input_dir, options.output_dir))
        if given == out or given in out.parents or out in given.parents:
            problems.append(f"--output-dir {options.output_dir}: lies in --input-dir {options.input_dir} or around it; give another folder")
    if options.num_workers is not None and options.num_workers < 1:
        problems.append(f"--num-workers {options.num_workers}: give 1 or more")
    if options.eot_id is not None and not 0 <= options.eot_id < 1 << 32:
        problems.append(f"--eot-id {options.eot_id}: give a token id")
    if options.data_key is not None and options.data_key not in READ_EXTENSIONS:
        problems.append(f"--data-key {options.data_key}: choose one of {', '.join(READ_EXTENSIONS)}")
    if problems:
        raise UserError(problems)
    assert options.input_dir and options.output_dir
    return options.input_dir, storage.local_path(options.output_dir)


def _vocabulary(options: ConvertOptions, stats: dict[str, object], beside: storage.Stored | None) -> tuple[int | None, bool]:
    """Id of end of text where known, and whether the ids need 32 bits: by the flags, else by the stats.json of the input."""
    told = stats.get("tokenizer")
    values = told if isinstance(told, dict) else {}
    eot_id, vocab_size = values.get("eot_id"), values.get("vocab_size") or 0
    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer)
        own = load_tokenizer(beside.url) if beside else None
        if own and not own.means_the_same(tokenizer):
            raise ValueError(
                f"--tokenizer {options.tokenizer} (sha256 {tokenizer.sha256[:12]}): the shards were made with another one, {own.name} "
                f"(sha256 {own.sha256[:12]}), which lies beside them; leave --tokenizer out"
            )
        eot_id, vocab_size = tokenizer.eot_id, tokenizer.vocab_size
        if options.eot_id not in (None, eot_id):
            raise ValueError(f"--eot-id {options.eot_id}: end of text of --tokenizer {options.tokenizer} is {eot_id}; give one of them")
    return eot_id if options.eot_id is None else options.eot_id, token_dtype(vocab_size) is np.uint32


def convert(options: ConvertOptions) -> Summary:
    """Convert all shards of a folder; an interrupted conversion goes on where it was.

    Raises:
        UserError, ValueError: bad options; damaged shards or other ones than their manifest says; tokens that the format can't hold.
        OSError: can't be read or written.
        RuntimeError: a worker process died.
    """
    folder, out = _check(options)
    given = Input(folder)
    stats = _read_stats(given)
    eot_id, wide = _vocabulary(options, stats, given.files.get(TOKENIZER))
    settings = {"format": options.format, "data_key": options.data_key, "eot_id": eot_id, "wide": wide}
    conversion = Conversion.open(out, _source_name(folder), settings, options.overwrite, list(filter(given.files.__contains__, COPIED)))
    tasks = [_task(source, out, options, eot_id, wide, conversion) for source in given.sources]
    entries: list[ShardEntry | None] = [None] * len(tasks)
    kept = left_out = 0
    for index, done in in_processes(convert_shard, tasks, options.num_workers, "converting", "shards"):
        source = given.sources[index]
        conversion.add(Line(source.name, source.stored.size, source.stored.stamp, done.others, done.entry))
        entries[index] = done.entry
        kept, left_out = kept + done.kept, left_out + done.others
    made = [entry for entry in entries if entry is not None]
    assert len(made) == len(tasks)
    _finish(given, made, out, options, stats)
    conversion.close([source.name for source in given.sources])
    return Summary(
        shards=len(made),
        kept=kept,
        sequences=sum(entry.num_sequences for entry in made),
        bytes_in=sum(source.stored.size for source in given.sources),
        bytes_out=sum(entry.bytes or 0 for entry in made),
        left_out=left_out,
    )


def _source_name(folder: str) -> str:
    return folder if storage.is_remote(folder) else str(storage.local_path(folder).resolve())


def _task(source: Source, out: Path, options: ConvertOptions, eot_id: int | None, wide: bool, conversion: Conversion) -> ShardTask:
    line = conversion.lines.get(source.name)
    if line is not None and (line.source_bytes, line.source_stamp) != (source.stored.size, source.stored.stamp):
        line = None
    return ShardTask(
        url=source.stored.url,
        told=source.told,
        path=str(out / f"{source.name}.tar"),
        format=options.format,
        key=options.data_key,
        eot_id=eot_id,
        wide=wide,
        made=line.entry if line else None,
        made_others=line.others if line else 0,
    )


def _read_stats(given: Input) -> dict[str, object]:
    """The stats.json of the input folder; empty where it has none."""
    stored = given.files.get(STATS)
    if stored is None:
        return {}
    with contextlib.suppress(ValueError):
        stats = json.loads(storage.read_bytes(stored.url))
        if isinstance(stats, dict):
            return stats
    raise ValueError(f"--input-dir: {stored.url} is no JSON object; mend or remove it")


def _finish(given: Input, entries: Sequence[ShardEntry], out: Path, options: ConvertOptions, stats: dict[str, object]) -> None:
    """Manifests, copies, and last the statistics."""
    by_folder: dict[Path, list[ShardEntry]] = {}
    for source, entry in zip(given.sources, entries, strict=True):
        by_folder.setdefault((out / source.name).parent, []).append(entry)
    for parent, some in by_folder.items():
        write_manifest(parent / MANIFEST, some)
    copies = [(stored.url, str(out / name)) for name, stored in given.files.items() if _is_copied(name)]
    for _ in in_processes(_copy, copies, options.num_workers, "copying", "files"):
        pass
    if stats:
        storage.write_bytes(str(out / STATS), (json.dumps({**stats, "format": options.format}, indent=2) + "\n").encode())


def _is_copied(name: str) -> bool:
    return name != STATS and (name in COPIED or (name.startswith(provenance.FOLDER + "/") and name.endswith(".npz")))


def _copy(task: tuple[str, str]) -> None:
    url, path = task
    with storage.atomic_write(path, durable=False) as file:
        file.write(storage.read_bytes(url))
