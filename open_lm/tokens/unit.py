"""A unit's task: its documents to ids, packed sequences and a spill file. The result depends on the unit and `UnitWork` alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from open_lm.tokenizer import Engine, FastEncoder, Tokenizer
from open_lm.tokens import shuffle
from open_lm.tokens.inputs import Unit
from open_lm.tokens.pack import cut, end_documents
from open_lm.tokens.read import Document, Place, Reader, Refused
from open_lm.tokens.spill import spill_path, write_spill

_BATCH_CHARACTERS = 2 << 20
_BATCH_DOCUMENTS = 20_000
_NAMED_REFUSALS = 20


@dataclass(frozen=True)
class UnitWork:
    """What all units of a corpus share."""

    tokenizer_file: str
    """A tokenizer.json."""
    tokenizer_name: str
    eot_token: str
    engine: Engine
    text_key: str
    length: int
    """Tokens of a stored sequence, seq_len + 1."""
    wide: bool
    """Ids are uint32, else uint16."""
    units: int
    buckets: int
    shuffle: bool
    seed: int
    folder: str
    """Where spills are written."""

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        return np.uint32 if self.wide else np.uint16


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit. Counts add up over units."""

    index: int
    documents: int
    characters: int
    utf8_bytes: int
    tokens: int
    """Ends of text included."""
    checked_tokens: int
    """Compared with the reference tokenizer."""
    refused: int
    refusals: tuple[str, ...]
    """The first of the refused documents: file, line, why."""
    bucket_sizes: np.ndarray
    """int64 [buckets]: sequences spilled for each."""
    tail: np.ndarray
    """Tokens after the last whole sequence, fewer than a sequence."""


@dataclass
class _Counts:
    documents: int = 0
    characters: int = 0
    utf8_bytes: int = 0
    tokens: int = 0
    checked_tokens: int = 0
    refused: int = 0
    refusals: list[str] = field(default_factory=list)


@functools.lru_cache(maxsize=1)
def _encoder(file: str, name: str, eot_token: str, engine: Engine) -> FastEncoder:
    return FastEncoder(Tokenizer(Path(file).read_text(encoding="utf-8"), name, eot_token), engine)


def do_units(task: tuple[UnitWork, tuple[Unit, ...]]) -> list[UnitResult]:
    """Do some units, one after another.

    Raises:
        ValueError: damaged compressed data, or a document whose ids differ from the reference tokenizer's.
    """
    work, units = task
    with Reader(work.text_key) as reader:
        return [_do_unit(work, unit, reader) for unit in units]


def _do_unit(work: UnitWork, unit: Unit, reader: Reader) -> UnitResult:
    encoder = _encoder(work.tokenizer_file, work.tokenizer_name, work.eot_token, work.engine)
    counts = _Counts()
    streams = [_encode(batch, encoder, counts, work) for batch in _batches(unit, reader, counts)]
    stream = np.concatenate(streams) if streams else np.empty(0, work.dtype)
    del streams
    rows, tail = cut(stream, work.length)
    sizes = spill_rows(work, unit.index, rows)
    named = {**vars(counts), "refusals": tuple(counts.refusals)}
    return UnitResult(index=unit.index, bucket_sizes=sizes, tail=tail.copy(), **named)


def spill_rows(work: UnitWork, index: int, rows: np.ndarray) -> np.ndarray:
    """Spill sequences [n, length] of the unit `index` to their buckets; returns int64 [buckets], sequences in each."""
    if work.shuffle:
        bucket_of = shuffle.buckets_of_unit(work.seed, index, len(rows), work.buckets)
    else:
        bucket_of = np.full(len(rows), shuffle.bucket_in_order(index, work.units, work.buckets))
    return write_spill(spill_path(work.folder, index), rows, bucket_of, work.buckets)


def _batches(unit: Unit, reader: Reader, counts: _Counts) -> Iterator[list[Document]]:
    """Documents in lots of about 2 Mi characters; refused ones are counted and named."""
    batch: list[Document] = []
    characters = 0
    for part in unit.parts:
        for found in reader.documents(part):
            if isinstance(found, Refused):
                counts.refused += 1
                if len(counts.refusals) < _NAMED_REFUSALS:
                    counts.refusals.append(f"{found.place}: {found.why}")
                continue
            batch.append(found)
            characters += len(found.text)
            if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def _encode(batch: list[Document], encoder: FastEncoder, counts: _Counts, work: UnitWork) -> np.ndarray:
    texts = [document.text for document in batch]
    ids, offsets = encoder.encode_batch(texts)
    checked, wrong = encoder.check(texts, ids, offsets, work.seed)
    if wrong is not None:
        raise ValueError(_difference(batch[wrong].place))
    counts.checked_tokens += checked
    counts.documents += len(texts)
    counts.characters += sum(map(len, texts))
    counts.utf8_bytes += sum(len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts)
    stream = end_documents(ids, offsets, encoder.reference.eot_id, work.dtype)
    counts.tokens += len(stream)
    return stream


def _difference(place: Place) -> str:
    return f"--tokenizer-engine gigatoken: {place}: its ids differ from tokenizers'; use --tokenizer-engine hf"
