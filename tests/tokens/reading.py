"""What the tests of reading share: making files, and reading them back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import zstandard

from open_lm.tokens.reading.inputs import InputFile, Part, input_file
from open_lm.tokens.reading.reader import Batch, Reader


def lines(*values: str) -> bytes:
    """A line of JSON for each value."""
    return b"".join(json.dumps({"text": v}).encode() + b"\n" for v in values)


def frames(raw: bytes, size: int, content_size: bool = True, checksum: bool = False) -> bytes:
    """Zstd frames of `size` bytes of text each."""
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=content_size, write_checksum=checksum)
    return b"".join(compressor.compress(raw[i : i + size]) for i in range(0, max(len(raw), 1), size))


def streamed(raw: bytes) -> bytes:
    """One zstd frame that doesn't tell its content size."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    return compressor.compress(raw) + compressor.flush()


SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"


def skippable_between(raw: bytes) -> bytes:
    """Frames of 50 bytes of text with skippable frames and an empty one around them."""
    empty = zstandard.ZstdCompressor().compress(b"")
    return SKIPPABLE + b"".join(frames(raw[i : i + 50], 50) + SKIPPABLE + empty for i in range(0, len(raw), 50))


LAYOUTS = {
    "plain": ("", bytes),
    "gzip": (".gz", gzip.compress),
    "gzip members": (".gz", lambda raw: b"".join(gzip.compress(raw[i : i + 40]) for i in range(0, max(len(raw), 1), 40)) + bytes(7)),
    "zstd": (".zst", zstandard.ZstdCompressor().compress),
    "zstd streamed": (".zst", streamed),
    "zstd frames": (".zst", lambda raw: frames(raw, 64, checksum=True)),
    "zstd frames without sizes": (".zst", lambda raw: frames(raw, 33, content_size=False)),
    "zstd skippable frames": (".zst", skippable_between),
}
COMPRESSORS = {LAYOUTS[name][0]: LAYOUTS[name][1] for name in ("plain", "gzip", "zstd")}


def write(folder: Path, raw: bytes, layout: str = "plain", kind: str = ".jsonl") -> InputFile:
    """A file of one of the LAYOUTS."""
    extension, compress = LAYOUTS[layout]
    path = folder / f"a{kind}{extension}"
    path.write_bytes(compress(raw))
    return input_file(str(path))


def batches(path: Path | InputFile, text_key: str = "text", **block: int) -> list[Batch]:
    file = path if isinstance(path, InputFile) else input_file(str(path))
    with Reader(text_key) as reader:
        return list(reader.batches(Part(file, **block)))


def documents(path: Path | InputFile, text_key: str = "text", **block: int) -> list[tuple[int, str]]:
    """(at, text) of all; refuses to pass over refused ones."""
    found = batches(path, text_key, **block)
    assert [str(refused) for batch in found for refused in batch.refused] == []
    return [pair for batch in found for pair in zip(batch.at, batch.texts, strict=True)]


def texts(path: Path | InputFile, text_key: str = "text", **block: int) -> list[str]:
    return [text for _, text in documents(path, text_key, **block)]


def refusals(path: Path | InputFile, text_key: str = "text", **block: int) -> list[str]:
    return [str(refused) for batch in batches(path, text_key, **block) for refused in batch.refused]
