"""conversion.jsonl: what the shards of a converted folder were made of, a line for each as it is finished.

The first line says from where and how; the same command goes on by the lines of an earlier run, another command is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from open_lm import storage
from open_lm.shards import provenance
from open_lm.shards.manifest import MANIFEST, ShardEntry
from open_lm.tokenizer import TOKENIZER, TOKENIZER_CONFIG

RECORD = "conversion.jsonl"
STATS = "stats.json"
COPIED = (STATS, TOKENIZER, TOKENIZER_CONFIG, f"{provenance.FOLDER}/{provenance.FILES}")
"""Files beside the shards that a conversion takes over, stats.json with its new format."""

_COPIED = "copied"


@dataclass(frozen=True)
class Line:
    """A finished shard: its path without .tar, bytes and stamp of the shard it was made of, members left out, its manifest entry."""

    name: str
    source_bytes: int
    source_stamp: str
    others: int
    entry: ShardEntry

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Line:
        values = json.loads(text)
        return Line(**{**values, "entry": ShardEntry(**values["entry"])})


class Conversion:
    """The record of the output folder. Made by `open`."""

    def __init__(self, path: Path, head: dict[str, Any], lines: dict[str, Line]):
        self.lines = lines
        self._path, self._head = path, head
        self._write(lines)

    @staticmethod
    def open(folder: Path, source: str, settings: Mapping[str, Any], overwrite: bool, copied: Sequence[str] = COPIED) -> Conversion:
        """Claim an output folder. Manifests of an earlier run go, so that none stands beside shards that are being made.

        Args:
            copied: those of `COPIED` that this conversion will take over. Another one may lie there that is the user's.

        Raises:
            ValueError: the folder holds something else, or what another command made.
        """
        path, head = folder / RECORD, {"source": source, **settings}
        found, lines = _read(path)
        copied_before = list(COPIED) if found is None else found.pop(_COPIED, list(COPIED))  # records of before told nothing of them
        mine = [name for name in copied if found is not None and name not in copied_before and (folder / name).exists()]
        if mine:
            raise ValueError(f"--output-dir {folder}: holds a {mine[0]} that no conversion made; move it away, or give another folder")
        if found is None and folder.exists() and (not folder.is_dir() or any(not _is_unfinished(file.name) for file in folder.iterdir())):
            raise ValueError(f"--output-dir {folder}: is not empty, and no conversion made what it holds; give another folder")
        begun = bool(lines) or any(folder.rglob("*.tar"))  # not one that failed at once
        if found not in (None, head) and begun and not overwrite:
            differing = "; ".join(f"{name} was {found.get(name)}, is {head[name]}" for name in head if found.get(name) != head[name])
            remedy = "give --overwrite to replace it, or another folder"
            raise ValueError(f"--output-dir {folder}: holds another conversion ({differing}); {remedy}")
        folder.mkdir(parents=True, exist_ok=True)
        _remove_manifests(folder, lines, copied_before)
        if overwrite:
            _remove_shards(folder, lines)
            lines = {}
        storage.remove_files(folder, filter(_is_unfinished, storage.contents(folder)))
        return Conversion(path, {**head, _COPIED: list(copied)}, lines)

    def add(self, line: Line) -> None:
        """Note a finished shard, on the disk."""
        self.lines[line.name] = line
        with storage.tell_full_disk(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line.to_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self, names: Sequence[str]) -> None:
        """Leave these shards, a line for each, in this order; others were made of shards that are gone."""
        _remove_shards(self._path.parent, self.lines.keys() - set(names))
        self._write({name: self.lines[name] for name in names})

    def _write(self, lines: Mapping[str, Line]) -> None:
        with storage.atomic_write(self._path, "w") as file:
            file.writelines([json.dumps(self._head) + "\n", *(line.to_json() + "\n" for line in lines.values())])


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Line]]:
    """The head, None where there is no record, and the lines. A kill may have cut the last line, which is then left out."""
    if not path.is_file():
        return None, {}
    text = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        lines = [Line.from_json(line) for line in text[1:]]
        if outside := [line.name for line in lines if Path(line.name).is_absolute() or ".." in Path(line.name).parts]:
            raise ValueError(f"{outside[0]} is outside of the folder")
        return json.loads(text[0]), {line.name: line for line in lines}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"--output-dir {path.parent}: {path} is damaged: {error!r}; remove the folder, or give another") from None


def _is_unfinished(name: str) -> bool:
    """True for the name of a file that a killed process was writing."""
    whole = storage.finished_name(name)
    return whole != name and (whole in (RECORD, *COPIED) or whole.endswith((".tar", ".npz", MANIFEST)))


def _remove_manifests(folder: Path, names: Iterable[str], copies: Iterable[str]) -> None:
    """Remove what says that some shards are whole, and what is copied when they are."""
    for name in names:
        ((folder / name).parent / MANIFEST).unlink(missing_ok=True)
    for copied in set(copies) & set(COPIED):
        (folder / copied).unlink(missing_ok=True)


def _remove_shards(folder: Path, names: Iterable[str]) -> None:
    """Remove some shards and their provenance; manifests that are left without shards too."""
    for name in names:
        (folder / f"{name}.tar").unlink(missing_ok=True)
        (folder / provenance.FOLDER / f"{name}.npz").unlink(missing_ok=True)
        beside = (folder / name).parent
        if not any(beside.glob("*.tar")):
            (beside / MANIFEST).unlink(missing_ok=True)
