"""A dataset, from the Hugging Face hub or anywhere else that `storage` reads, to `jsonl.zst` files in train, val and test.

<output-dir>/{train,val,test}/00000.jsonl.zst and on, a line {"id": ..., "text": ...} each document; download.json: what was asked for, and,
once all is there, the counts. Input files are dealt to the output files in runs of consecutive ones, about equal in bytes. Output file n of
every split holds what input run n gives it, so a run is one task: whole or absent, and a stopped download does the absent ones. Nothing
but a batch of documents is held in memory, and nothing is stored but the output.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from open_lm import storage
from open_lm.executor import LocalExecutor
from open_lm.params.fields import counted
from open_lm.progress import Progress
from open_lm.tokens.reading.inputs import InputFile
from open_lm.tokens.tools.records import records
from open_lm.tokens.tools.split import SPLITS, split_of

NOTE = "download.json"
FRAME_BYTES = 4 << 20
"""Text of a zstd frame, each with its size, so that several workers can read one file."""
_LEVEL = 3
_PARTS = ".parts"
_OURS = re.compile(rf"{NOTE}|({'|'.join(SPLITS)})/(\d{{5,}}\.jsonl\.zst)?|{re.escape(_PARTS)}/(\d{{5,}}\.json)?")
_NAMED_REFUSALS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What a download is to come to.

    Args:
        split_fractions: shares of train, val and test.
        id_key: the split is by a hash of the id there; None: by a hash of the text.
        max_documents: the first so many, in the order of the files.
        num_files: output files of each split.
    """

    text_key: str
    id_key: str | None
    split_fractions: tuple[float, ...]
    max_documents: int | None
    num_files: int


@dataclass
class Written:
    """Counts; they add up."""

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    utf8_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    """Of the texts."""
    refused: int = 0
    refusals: list[str] = field(default_factory=list)
    """The first of them: place and why."""

    def add(self, other: Written) -> None:
        """Take in the counts of another task."""
        for name in SPLITS:
            self.documents[name] += other.documents[name]
            self.utf8_bytes[name] += other.utf8_bytes[name]
        self.refused += other.refused
        self.refusals = (self.refusals + other.refusals)[:_NAMED_REFUSALS]

    @property
    def total(self) -> int:
        """Documents of all splits."""
        return sum(self.documents.values())


@dataclass(frozen=True)
class _Task:
    folder: str
    number: int
    files: tuple[InputFile, ...]
    wanted: Wanted
    room: int | None = None
    """Documents at most."""


def download(
    files: Sequence[InputFile], folder: str, wanted: Wanted, source: Mapping[str, Any], executor: LocalExecutor, overwrite: bool
) -> Written:
    """Write what is not there yet.

    Args:
        source: what the files are, for the note.

    Raises:
        ValueError: a folder that holds something else; input that can't be used.
        OSError: the storage or the disk fails; the same command goes on.
    """
    asked = {**source, **_plain(asdict(wanted)), "files": [[file.path, file.size, file.stamp] for file in files]}
    place = Path(folder)
    done = _claim(place, asked, overwrite)
    if done is not None:
        log.info("%s: is complete already", folder)
        return done
    tasks = [_Task(folder, number, run, wanted) for number, run in enumerate(deal(files, wanted.num_files))]
    total = Written()
    parts = _in_turn(tasks, wanted.max_documents) if wanted.max_documents is not None else _at_once(tasks, executor)
    for written in Progress("downloading", len(tasks), "parts").over(parts):
        total.add(written)
    total.refusals.sort()
    if not total.total:
        why = f"; the first is {total.refusals[0]}" if total.refusals else ""
        raise ValueError(f"--dataset: {counted(total.refused, 'document')}, none of them with a text{why}; check --text-key and --id-key")
    _note(place, asked, total)
    storage.remove_files(place, [name for name in _ours(place) if name.startswith(_PARTS)])
    return total


def deal(files: Sequence[InputFile], number: int) -> list[tuple[InputFile, ...]]:
    """Files in so many runs of consecutive ones, at least one each, about equal in bytes. Pure.

    Raises:
        ValueError: more runs than files.
    """
    if number > len(files):
        raise ValueError(f"--num-files {number}: the dataset has {counted(len(files), 'file')}; give {len(files)} or fewer")
    runs, start, left = [], 0, sum(file.size for file in files)
    for remaining in range(number, 0, -1):
        stop, size = start + 1, files[start].size
        while stop < len(files) - (remaining - 1) and (remaining == 1 or size + files[stop].size / 2 <= left / remaining):
            size += files[stop].size
            stop += 1
        runs.append(tuple(files[start:stop]))
        start, left = stop, left - size
    return runs


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _claim(place: Path, asked: Mapping[str, Any], overwrite: bool) -> Written | None:
    """Make the folder ours. The counts of a download that is complete already, else None.

    Raises:
        ValueError: the folder holds something else.
    """
    note = place / NOTE
    before, written = _read_note(note)
    if before == asked:
        storage.remove_files(place, [name for name in _ours(place) if storage.finished_name(name) != name])  # of a killed process
        return written
    if before is not None and not overwrite and any(name.endswith(".zst") for name in _ours(place)):  # not one that failed at once
        differing = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
        what = ", ".join("the dataset's files" if name == "files" else f"--{name.replace('_', '-')}" for name in differing)
        raise ValueError(f"--output-dir {place}: holds another download (other {what}); choose another folder or add --overwrite")
    if before is None and place.is_dir() and any(place.iterdir()):
        raise ValueError(f"--output-dir {place}: is not empty, and no {NOTE} tells that this program wrote there; choose another folder")
    if before is not None:
        _note(place, {}, None)  # ours, and of no command, whenever this ends
        storage.remove_files(place, [name for name in _ours(place) if name != NOTE])
    _note(place, asked, None)
    return None


def _read_note(note: Path) -> tuple[dict[str, Any] | None, Written | None]:
    """What was asked for, and what was written if that is complete; None without a note that can be read."""
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        return values["asked"], None if values["written"] is None else Written(**values["written"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, None


def _ours(place: Path) -> list[str]:
    """What this program wrote into the folder, or left unfinished."""
    return [name for name in storage.contents(place) if _OURS.fullmatch(storage.finished_name(name))]


def _note(place: Path, asked: Mapping[str, Any], written: Written | None) -> None:
    with storage.atomic_write(place / NOTE, "w") as file:
        file.write(json.dumps({"asked": asked, "written": None if written is None else asdict(written)}, indent=1) + "\n")


def _at_once(tasks: Sequence[_Task], executor: LocalExecutor) -> Iterator[Written]:
    yield from (written for _, written in executor.map(_do, tasks))


def _in_turn(tasks: Sequence[_Task], most: int) -> Iterator[Written]:
    """One after another, because how many documents a task may write depends on those before it."""
    for task in tasks:
        if most <= 0:
            return
        written = _do(_Task(task.folder, task.number, task.files, task.wanted, most))
        most -= written.total
        yield written


def _do(task: _Task) -> Written:
    """One output file of each split, or what was noted when they were written."""
    note = Path(task.folder) / _PARTS / f"{task.number:05d}.json"
    if note.is_file():
        return Written(**json.loads(note.read_text(encoding="utf-8")))
    written = Written()
    with contextlib.ExitStack() as stack:
        outputs: dict[str, _Output] = {}
        for name, line, size in _lines(task, written):
            if name not in outputs:
                path = Path(task.folder) / name / f"{task.number:05d}.jsonl.zst"
                outputs[name] = _Output(stack.enter_context(storage.atomic_write(path)))
            outputs[name].write(line)
            written.documents[name] += 1
            written.utf8_bytes[name] += size
        for output in outputs.values():
            output.flush()
    with storage.atomic_write(note, "w") as file:
        json.dump(asdict(written), file)
    return written


def _lines(task: _Task, written: Written) -> Iterator[tuple[str, bytes, int]]:
    """(split, line, bytes of the text) of a task's documents."""
    wanted, left = task.wanted, task.room
    for file in task.files:
        for name, text in records(file, wanted.text_key, wanted.id_key):
            if left is not None and left <= 0:
                return
            if text is None:
                written.refused += 1
                written.refusals += [str(name)] if len(written.refusals) < _NAMED_REFUSALS else []
                continue
            line = orjson.dumps({"text": text} if name is None else {"id": name, "text": text}, option=orjson.OPT_APPEND_NEWLINE)
            size = len(text) if text.isascii() else len(text.encode())
            yield split_of(text if name is None else name, wanted.split_fractions), line, size
            left = None if left is None else left - 1


class _Output:
    """Lines to zstd frames."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._lines: list[bytes] = []
        self._bytes = 0

    def write(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= FRAME_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write a frame of what was gathered."""
        if self._lines:
            self._file.write(self._compressor.compress(b"".join(self._lines)))
            self._lines, self._bytes = [], 0
