"""What a job will come to, from a sample of its text: tokens, disk, time. For the check before the start, the time left, and --dry-run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from open_lm.tokens.plan import text_bytes
from open_lm.tokens.reading.inputs import InputFile, Part
from open_lm.tokens.reading.reader import Reader
from open_lm.tokens.unit import EncoderWork, encoder_for

_SAMPLED_FILES = 8
_SAMPLED_CHARACTERS = 1 << 20
_STORED_PER_TOKEN = {"txt": 7.0, "json.gz": 2.7, "npy": 0.0}
"""Bytes of a shard for each token, beyond those of npy, which are known. Of English text with a vocabulary of 50,000; generous."""
_TAR_ROW = 1024
_WRITTEN_PER_SECOND = {"txt": 25e6, "json.gz": 4e6, "npy": 200e6}
"""Tokens a second that a worker writes, about."""


@dataclass(frozen=True)
class Estimate:
    """Of a whole job; sizes in bytes."""

    text: int
    tokens: int
    sequences: int
    temporary: int
    output: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Bytes of text for each token."""
        return self.text / max(self.tokens, 1)


def estimate(
    files: Sequence[InputFile], work: EncoderWork, text_key: str, workers: int, length: int, itemsize: int, shard_format: str
) -> Estimate:
    """A guess from the first Mi characters of up to 8 files, spread over the list; up to a few hundredths of a second each.

    Raises:
        ValueError: a file that can't be read.
    """
    sample = [file for file in files[:: max(1, -(-len(files) // _SAMPLED_FILES))] if file.size]
    characters = utf8 = tokens = 0
    started = time.monotonic()
    for file in sample:
        with Reader(text_key) as reader:
            batch = next(iter(reader.batches(Part(file, 0, 1 if file.holds == "table" else _SAMPLED_CHARACTERS))), None)
        texts = _some(batch.texts if batch else [])
        ids, _ = encoder_for(work).encode_batch(texts)
        tokens += len(ids) + len(texts)
        characters += sum(map(len, texts))
        utf8 += sum(len(text.encode()) for text in texts)
    seconds = time.monotonic() - started
    text = sum(map(text_bytes, files))
    total = int(text * tokens / utf8) if utf8 else 0
    stored = itemsize + _STORED_PER_TOKEN[shard_format] if shard_format != "txt" else _STORED_PER_TOKEN["txt"]
    output = int(total * stored) + (total // length + 1) * (_TAR_ROW if shard_format != "npy" else 16)
    reading = seconds * text / utf8 if utf8 else 0.0
    return Estimate(
        text, total, total // length, int(total * itemsize * 1.1), output, (reading + total / _WRITTEN_PER_SECOND[shard_format]) / workers
    )


def _some(texts: list[str]) -> list[str]:
    """The first of some texts, 1 Mi characters in all."""
    chosen, room = [], _SAMPLED_CHARACTERS
    for text in texts:
        if room <= 0:
            break
        chosen.append(text[:room])
        room -= len(text)
    return chosen


def check_disk(needs: Sequence[tuple[str, Path, int]]) -> None:
    """Raises ValueError where a disk has less room than is needed: (flag, folder, bytes), of one disk together."""
    disks: dict[int, list[tuple[str, Path, int]]] = {}
    for flag, folder, size in needs:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        disks.setdefault(existing.stat().st_dev, []).append((flag, existing, size))
    for some in disks.values():
        needed, free = sum(size for _, _, size in some), shutil.disk_usage(some[0][1]).free
        if needed > free:
            flags = " and ".join(f"{flag} {folder}" for flag, folder, _ in some)
            raise ValueError(
                f"{flags}: about {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free;"
                " make room, or give another --temp-dir or --output-dir"
            )
