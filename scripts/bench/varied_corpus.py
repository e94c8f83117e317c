"""Much text from little: a folder's texts again and again, cut into documents anew, sentences in another order, some words replaced.

A folder of .jsonl.zst files in, a folder of .jsonl.zst files out, the same for the same parameters, kept under their hash. What is made
has the words and the look of its sources, and (through the replaced words) goes on bringing words that weren't seen before, as text does;
no sequence of more than a few dozen words comes twice in the same surroundings.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import string
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import zstandard

REPLACED = 0.02
"""Share of the words: half of them by other words of the sources, a quarter by numbers, a quarter by random letters."""
MEDIAN_CHARACTERS, SPREAD = 2_500, 1.18
"""Documents' lengths are log-normal, 5,000 characters in the mean."""
LONGEST = 400_000
FILES = 8
_LEVEL = 3
_SUMMARY = "corpus.json"
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?]\s)(?=\S)|(?<=\n)(?=[^\n])")


@dataclass(frozen=True)
class Corpus:
    """What was made. `text_bytes` is UTF-8 without JSON's own characters, `stored_bytes` the size of the files."""

    folder: str
    files: tuple[str, ...]
    documents: int
    text_bytes: int
    stored_bytes: int

    @property
    def paths(self) -> list[str]:
        return [str(Path(self.folder) / name) for name in self.files]


@dataclass(frozen=True)
class _File:
    """One file to make."""

    path: str
    sources: tuple[str, ...]
    text_bytes: int
    seed: str


def make_corpus(source: Path, megabytes: float, folder: Path, seed: int = 0) -> Corpus:
    """`megabytes` (10^6 bytes) of text in `FILES` files, made unless it is there.

    Args:
        source: folder of .jsonl.zst with a "text" in each line.
        folder: where corpora are kept.

    Raises:
        ValueError: no sources.
    """
    sources = tuple(sorted(str(path) for path in source.glob("*.jsonl.zst")))
    if not sources:
        raise ValueError(f"--text {source}: holds no .jsonl.zst; give a folder of such files, with a text in each line")
    place = folder / f"corpus-{megabytes:g}MB-{_key(sources, megabytes, seed)}"
    if not (place / _SUMMARY).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            _make(Path(unfinished), sources, megabytes, seed)
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(unfinished, place, copy_function=os.rename)
    values = json.loads((place / _SUMMARY).read_text())
    return Corpus(str(place), **{**values, "files": tuple(values["files"])})


def _key(sources: tuple[str, ...], megabytes: float, seed: int) -> str:
    named = [(Path(path).name, Path(path).stat().st_size) for path in sources]
    what = json.dumps([named, megabytes, seed, Path(__file__).read_text(encoding="utf-8")])
    return hashlib.sha256(what.encode()).hexdigest()[:12]


def _make(place: Path, sources: tuple[str, ...], megabytes: float, seed: int) -> None:
    size = int(megabytes * 1e6 / FILES)
    files = [_File(str(place / f"part-{n:02d}.jsonl.zst"), sources, size, f"{seed}/{n}") for n in range(FILES)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        made = list(pool.map(_write, files))
    summary = {
        "files": [Path(file.path).name for file in files],
        "documents": sum(documents for documents, _ in made),
        "text_bytes": sum(text for _, text in made),
        "stored_bytes": sum(Path(file.path).stat().st_size for file in files),
    }
    (place / _SUMMARY).write_text(json.dumps(summary))


def _write(file: _File) -> tuple[int, int]:
    """Make one file. Returns its documents and their bytes."""
    random_numbers = random.Random(file.seed)
    documents = text_bytes = 0
    with open(file.path, "wb") as raw, zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw) as out:
        for text in _documents(file.sources, random_numbers):
            encoded = text.encode("utf-8")
            out.write(orjson.dumps({"id": f"{file.seed}/{documents}", "text": text}) + b"\n")
            documents += 1
            text_bytes += len(encoded)
            if text_bytes >= file.text_bytes:
                return documents, text_bytes
    raise AssertionError("the documents never end")


def _documents(sources: tuple[str, ...], random_numbers: random.Random) -> Iterator[str]:
    """Documents without end: the sources' sentences from a random one on, again from the first after the last."""
    sentences, words = _sentences(sources)
    at = random_numbers.randrange(len(sentences))
    while True:
        wanted = min(random_numbers.lognormvariate(0, SPREAD) * MEDIAN_CHARACTERS, LONGEST)
        chosen: list[str] = []
        while wanted > 0:
            chosen.append(sentences[at])
            wanted -= len(sentences[at])
            at = (at + 1) % len(sentences)
        random_numbers.shuffle(chosen)
        yield _replace_words("".join(chosen), words, random_numbers)


@functools.lru_cache(1)
def _sentences(sources: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The sources' sentences in order, each with the space after it, and their different words."""
    sentences = [sentence for text in _texts(sources) for sentence in _BETWEEN_SENTENCES.split(text)]
    return sentences, sorted({word for sentence in sentences for word in sentence.split()})


def _texts(sources: tuple[str, ...]) -> Iterator[str]:
    for source in sources:
        with open(source, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
            yield from (orjson.loads(line)["text"] for line in stream.read().split(b"\n") if line)


def _replace_words(text: str, words: list[str], random_numbers: random.Random) -> str:
    parts = text.split(" ")
    count = int(len(parts) * REPLACED + random_numbers.random())
    for _ in range(count):
        kind = random_numbers.random()
        if kind < 0.5:
            new = words[int(random_numbers.random() * len(words))]
        elif kind < 0.75:
            new = str(random_numbers.getrandbits(random_numbers.randint(4, 30)))
        else:
            new = "".join(random_numbers.choices(string.ascii_letters, k=random_numbers.randint(3, 10)))
        parts[int(random_numbers.random() * len(parts))] = new
    return " ".join(parts)


def to_json(corpus: Corpus) -> dict[str, object]:
    """Of a corpus, without the folder that it lies in."""
    values = asdict(corpus)
    del values["folder"]
    return {**values, "files": len(corpus.files), "mean_document_bytes": round(corpus.text_bytes / corpus.documents)}
