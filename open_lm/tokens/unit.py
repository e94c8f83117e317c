"""A unit's task: its documents to ids, sequences and a spill. The result depends on the unit and `UnitWork` alone."""

from __future__ import annotations

import functools
import json
import time
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from open_lm import storage
from open_lm.fast_tokenizer import Difference, FastEncoder
from open_lm.tokenizer import TOKENIZER, Engine, Tokenizer
from open_lm.tokens import shuffle
from open_lm.tokens.large import LargeDocuments
from open_lm.tokens.lengths import Lengths
from open_lm.tokens.pieces import PIECE, Packer, Rows
from open_lm.tokens.plan import Group, Stretch, block_part, parts_of_unit
from open_lm.tokens.reading.batch import Batch, place_of
from open_lm.tokens.reading.inputs import InputFile
from open_lm.tokens.reading.reader import Reader
from open_lm.tokens.spill import SpillWriter, spill_path

SEGMENT_TOKENS = 8 << 20
"""Tokens that a worker gathers before it writes them to its spill. Decides its memory, and nothing else."""
NAMED_REFUSALS = 20
DIFFERENCE = "tokenizer-difference.json"

_HISTOGRAMS = ("lengths", "documents_of_sequences")


@dataclass(frozen=True)
class EncoderWork:
    """How texts become ids."""

    tokenizer_file: str
    """A tokenizer.json."""
    tokenizer_name: str
    eot_token: str
    engine: Engine = "auto"
    escape_special: bool = False
    verify: bool = True
    normalize: Literal["none", "nfc"] = "none"
    bos_id: int | None = None
    """Put before every document."""


def encoder_work(tokenizer: Tokenizer, folder: str | Path, **how: Any) -> EncoderWork:
    """A tokenizer for the workers, who find it in a folder. `how`: fields of `EncoderWork` that are not as usual."""
    file = str(Path(folder) / TOKENIZER)
    storage.write_bytes(file, tokenizer.json_text.encode())
    return EncoderWork(file, tokenizer.name, tokenizer.eot_token, **how)


@dataclass(frozen=True)
class UnitWork:
    """What all units of a corpus share."""

    encoder: EncoderWork
    text_key: str
    length: int
    """Tokens of a stored sequence, seq_len + 1."""
    wide: bool
    """Ids are uint32, else uint16."""
    unit_bytes: int
    groups: int
    buckets: int
    shuffle: bool
    seed: int
    strict: bool
    """The first refused document is an error."""
    folder: str
    """Where spills are written."""
    large_bytes: int
    """Memory for documents beyond 8 MiB, held by one worker at a time."""

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        return np.uint32 if self.wide else np.uint16


@dataclass
class UnitCounts:
    """What became of a unit. Counts add up over units."""

    documents: int = 0
    refused: int = 0
    refusals: list[str] = field(default_factory=list)
    """The first of the refused documents: file, line, why."""
    characters: int = 0
    utf8_bytes: int = 0
    tokens: int = 0
    """Begins and ends of text included."""
    checked_tokens: int = 0
    """Compared with the reference tokenizer."""
    checking_seconds: float = 0.0
    seconds: float = 0.0
    lengths: Lengths = field(default_factory=Lengths)
    """Of the documents, in tokens."""
    documents_of_sequences: Lengths = field(default_factory=Lengths)
    """How many documents have tokens in each sequence."""
    last: bool = True
    """Nothing of the group comes after this unit."""

    def add(self, other: UnitCounts) -> None:
        """Add another unit's."""
        for name in (
            "documents",
            "refused",
            "refusals",
            "characters",
            "utf8_bytes",
            "tokens",
            "checked_tokens",
            "checking_seconds",
            "seconds",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lengths = self.lengths + other.lengths
        self.documents_of_sequences = self.documents_of_sequences + other.documents_of_sequences

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), **{name: getattr(self, name).to_json() for name in _HISTOGRAMS}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, **{name: Lengths.from_json(values[name]) for name in _HISTOGRAMS}})


class TokenizerDifference(ValueError):
    """A document whose ids differ from the reference tokenizer's; what is needed to look into it lies in `file`."""


@functools.lru_cache(maxsize=1)
def encoder_for(work: EncoderWork) -> FastEncoder:
    """The process's one encoder."""
    tokenizer = Tokenizer(Path(work.tokenizer_file).read_text(encoding="utf-8"), work.tokenizer_name, work.eot_token)
    return FastEncoder(tokenizer, work.engine, escape_special=work.escape_special, verify=work.verify)


def do_stretch(task: tuple[UnitWork, Stretch]) -> int:
    """Do some units of one group, one after another; each leaves its spill. Returns how many.

    Raises:
        ValueError: damaged data, a refused document where none is allowed, a document whose ids differ from the reference's.
    """
    work, stretch = task
    with LargeDocuments(work.folder, work.large_bytes) as large, Reader(work.text_key, large.grow) as reader:
        return do_blocks(stretch, work.unit_bytes, reader, lambda block: _Unit(work, stretch.group, block, reader, large).do())


def do_blocks(stretch: Stretch, unit_bytes: int, reader: Reader, do: Callable[[int], UnitCounts]) -> int:
    """Do the units of a stretch that are there, up to the last one of the file; `do` takes a block's number. Returns how many."""
    group, done, block = stretch.group, 0, stretch.first
    while stretch.stop is None or block < stretch.stop:
        if block not in stretch.done:
            if group.long and block and not reader.holds(block_part(group.files[0], block, unit_bytes)):
                break
            done += 1
            if do(block).last:
                break
        block += stretch.step
    return done


class _Unit:
    """One unit on its way to its spill."""

    def __init__(self, work: UnitWork, group: Group, block: int, reader: Reader, large: LargeDocuments):
        self._work, self._group, self._block, self._reader, self._large = work, group, block, reader, large
        self.counts = UnitCounts()
        self._encoder = encoder_for(work.encoder)
        self._packer = Packer(work.length, work.dtype, max(1, SEGMENT_TOKENS // work.length))
        self._sequences = 0

    def do(self) -> UnitCounts:
        """Read, encode, pack and spill."""
        started = time.monotonic()
        writer = SpillWriter(spill_path(self._work.folder, self._group.index, self._block), self._work.buckets)
        try:
            for number, part in parts_of_unit(self._group, self._block, self._work.unit_bytes):
                for batch in self._reader.batches(part):
                    self._take(batch, number, writer)
                    del batch
                    self._large.release()
            rows, tail, pieces = self._packer.finish()
            self._spill(rows, writer)
            if self._group.long:
                self.counts.last = self._reader.ended(part)
            self.counts.seconds = time.monotonic() - started
            writer.close(tail, pieces, self.counts.to_json())
        except BaseException as error:
            writer.abandon(error)
            raise
        return self.counts

    def _take(self, batch: Batch, file_number: int, writer: SpillWriter) -> None:
        counts = self.counts
        for refused in batch.refused:
            named = str(refused) if len(counts.refusals) < NAMED_REFUSALS else ""
            if self._work.strict:
                raise ValueError(f"--input-files {named}; mend it, or let such documents pass with --max-bad-fraction")
            counts.refused += 1
            counts.refusals += [named] if named else []
        if not batch.texts:
            return
        counts.documents += len(batch.texts)
        counts.characters += sum(map(len, batch.texts))
        counts.utf8_bytes += sum(len(text) if text.isascii() else len(text.encode("utf-8")) for text in batch.texts)
        stream, lengths = self._encode(batch)
        counts.tokens += len(stream)
        counts.lengths = counts.lengths + Lengths.of(lengths)
        pieces = np.zeros(len(lengths), PIECE)
        pieces["file"], pieces["at"], pieces["length"] = file_number, batch.at, lengths
        for rows in self._packer.add(stream, pieces):
            self._spill(rows, writer)

    def _encode(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a batch with begins and ends of text, [total], and tokens of each document, [documents]."""
        encoder, work = self._encoder, self._work
        texts = batch.texts
        if work.encoder.normalize == "nfc":
            texts = [text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts]
        documents = encoder.encode_documents(texts, work.dtype, work.encoder.bos_id)
        before = encoder.checking_seconds
        checked, difference = encoder.check_documents(texts, documents, work.seed)
        self.counts.checking_seconds += encoder.checking_seconds - before
        if difference is not None:
            raise TokenizerDifference(write_difference(work.folder, batch.file, batch.at[difference.index], difference))
        self.counts.checked_tokens += checked
        return documents.tokens, np.diff(documents.offsets)

    def _spill(self, rows: Rows, writer: SpillWriter) -> None:
        count = len(rows.tokens)
        if not count:
            return
        work = self._work
        if work.shuffle:
            unit = self._group.index, self._block
            bucket_of = shuffle.buckets_of_unit(work.seed, unit, self._sequences, count, work.buckets)
        else:
            bucket_of = np.full(count, shuffle.bucket_in_order(self._group.index, work.groups, work.buckets))
        self._sequences += count
        self.counts.documents_of_sequences += Lengths.of(np.diff(rows.ends, prepend=0))
        writer.add(rows, bucket_of)


def write_difference(folder: str, file: InputFile, at: int, difference: Difference) -> str:
    """Put what is needed to look into a difference into a file; returns the message that names it."""
    path = Path(folder) / DIFFERENCE
    with storage.atomic_write(path, "w") as out:
        json.dump({"file": file.path, "at": at, **asdict(difference)}, out, indent=1)
    return (
        f"--tokenizer-engine gigatoken: {place_of(file, at)}: its ids differ from those of tokenizers;"
        f" the text and both are in {path}; use --tokenizer-engine hf"
    )
