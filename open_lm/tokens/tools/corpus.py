"""A small corpus that is on every machine: the source files of Python's own standard library.

Folder in, two jsonl.zst files out: documents `{"id": path inside the library, "text": the file}`, split into a training and a
held-out part by a hash of the path, so that a file keeps its side whatever else is there. The same library gives the same bytes.

Packages that were installed into the library's folder are not looked at. Left out, each reason with its count in
`Corpus.skipped`: files that are broken on purpose or not UTF-8, generated ones (this machine's build settings among them),
empty files, copies of an earlier file, and data tables: files that are nearly all literals, such as the code pages of
`encodings`. A megabyte of `'\\x41'  # LATIN CAPITAL LETTER A` teaches a small model nothing and fills its vocabulary.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from open_lm import storage

TRAIN_NAME = "train.jsonl.zst"
HELDOUT_NAME = "heldout.jsonl.zst"

_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
_BROKEN = re.compile(r"(^|/)(tokenizedata|encoded_modules|lib2to3/tests/data)/|(^|/)bad[^/]*\.py$")
_GENERATED = re.compile(r"(^|/)_sysconfigdata[^/]*\.py$|^pydoc_data/topics\.py$")
_LITERAL_LINE = re.compile(r"""\s*[-+(]?\s*(?:[rbuRBU]{0,2}['"]|\d)""")
_TABLE_MIN_CHARACTERS = 8192
_TABLE_SHARE = 2 / 3


class Document(NamedTuple):
    """One source file."""

    id: str
    text: str


@dataclass(frozen=True)
class Part:
    """What was written to one file."""

    path: Path
    documents: int
    characters: int
    bytes: int
    """Of the texts, UTF-8, uncompressed."""


@dataclass(frozen=True)
class Corpus:
    """What was written and what was left out."""

    train: Part
    heldout: Part
    skipped: dict[str, int]
    """Files by the reason why they were left out."""


def standard_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def is_data_table(text: str) -> bool:
    """True for a file of 8192 characters or more whose lines are mostly literals (by characters, two thirds of them)."""
    if len(text) < _TABLE_MIN_CHARACTERS:
        return False
    lines = [line for line in text.splitlines() if line.strip()]
    literal = sum(len(line) for line in lines if _LITERAL_LINE.match(line))
    return literal >= _TABLE_SHARE * sum(map(len, lines))


def is_heldout(document_id: str, fraction: float) -> bool:
    """The side of a document: a pure function of its path."""
    number = int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "big")
    return number < fraction * 2**64


def read_source_files(folder: Path, skipped: Counter[str]) -> Iterator[Document]:
    """The Python files below `folder` in the order of their paths; those left out are counted in `skipped`."""
    seen: set[bytes] = set()
    for name in _python_files(folder):
        data = (folder / name).read_bytes()
        reason, text = _judge(name, data)
        digest = hashlib.sha256(data).digest()
        if not reason and digest in seen:
            reason = "the same text as an earlier file"
        if reason:
            skipped[reason] += 1
            continue
        seen.add(digest)
        yield Document(name, text)


def _python_files(folder: Path) -> list[str]:
    """Paths of the .py files below a folder, with `/`, sorted; folders of other people's packages are not entered."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _FOREIGN]
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files if name.endswith(".py")]
    return sorted(names)


def _judge(name: str, data: bytes) -> tuple[str, str]:
    """Why a file is left out ("" when it is kept), and its text."""
    if _BROKEN.search(name):
        return "broken on purpose", ""
    if _GENERATED.search(name):
        return "generated data", ""
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return "not UTF-8", ""
    if not text.strip():
        return "empty", ""
    return ("a data table" if is_data_table(text) else ""), text


def write_part(path: Path, documents: Iterable[Document]) -> Part:
    """Write documents as zstd-compressed JSON lines; the same documents give the same bytes."""
    import orjson
    import zstandard

    count = characters = size = 0
    with storage.atomic_write(path) as file, zstandard.ZstdCompressor(level=9).stream_writer(file, closefd=False) as compressed:
        for document in documents:
            compressed.write(orjson.dumps({"id": document.id, "text": document.text}) + b"\n")
            count, characters, size = count + 1, characters + len(document.text), size + len(document.text.encode())
    return Part(path, count, characters, size)


def build_corpus(
    output_dir: str | Path, *, source_dir: str | Path | None = None, heldout_fraction: float = 0.05, overwrite: bool = False
) -> Corpus:
    """Write `train.jsonl.zst` and `heldout.jsonl.zst`.

    Args:
        output_dir: local folder, made when absent.
        source_dir: a folder of Python files; default: the running interpreter's standard library.
        heldout_fraction: expected share of the files in the held-out part, in (0, 1).
        overwrite: replace files that exist.

    Raises:
        ValueError: a fraction outside (0, 1), output that exists, a source without Python files.
    """
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"--heldout-fraction {heldout_fraction}: give a number between 0 and 1")
    if problems := storage.unwritable("--output-dir", str(output_dir), folder=True):
        raise ValueError(problems[0])
    train_path, heldout_path = Path(output_dir) / TRAIN_NAME, Path(output_dir) / HELDOUT_NAME
    existing = next((path for path in (train_path, heldout_path) if path.exists()), None)
    if existing and not overwrite:
        raise ValueError(f"--output-dir {output_dir}: {existing.name} exists already; choose another folder or add --overwrite")
    folder = standard_library() if source_dir is None else Path(source_dir)
    skipped: Counter[str] = Counter()
    train: list[Document] = []
    heldout: list[Document] = []
    for document in read_source_files(folder, skipped):
        (heldout if is_heldout(document.id, heldout_fraction) else train).append(document)
    if not train or not heldout:
        raise ValueError(
            f"--source-dir {folder}: {len(train)} files to train on and {len(heldout)} to hold out, both are needed; "
            "give a folder with more Python files, or another --heldout-fraction"
        )
    return Corpus(write_part(train_path, train), write_part(heldout_path, heldout), dict(sorted(skipped.items())))
