"""A unit's task: its records to conversations, ids, rows and a spill. The result depends on the unit and `InstructWork` alone."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from open_lm.tokens import shuffle
from open_lm.tokens.instruct.encoding import SegmentEncoder
from open_lm.tokens.instruct.options import Long, LossOn
from open_lm.tokens.instruct.packing import ConversationPacker, fitted
from open_lm.tokens.instruct.records import Keys, NotUsableError, parse_record
from open_lm.tokens.instruct.spans import Segment, segments_of
from open_lm.tokens.instruct.template import ChatTemplate
from open_lm.tokens.large import LargeDocuments
from open_lm.tokens.lengths import Lengths
from open_lm.tokens.pieces import PIECE, Rows
from open_lm.tokens.plan import Group, Stretch, parts_of_unit
from open_lm.tokens.reading.batch import Refused
from open_lm.tokens.reading.inputs import InputFile, Part
from open_lm.tokens.reading.reader import Reader
from open_lm.tokens.spill import SpillWriter, spill_path
from open_lm.tokens.unit import NAMED_REFUSALS, EncoderWork, TokenizerDifference, UnitCounts, do_blocks, encoder_for, write_difference

_CHARACTERS, _RECORDS = 1 << 20, 2000
_SUMS = ("counted_tokens", "targets", "padding", "long", "left_out", "inner_ends")


@dataclass(frozen=True)
class InstructWork:
    """What all units of a job share."""

    encoder: EncoderWork
    keys: Keys
    template: ChatTemplate | None
    separator: str
    loss_on: LossOn
    length: int
    """Tokens of a row, seq_len + 1."""
    long: Long
    unit_bytes: int
    groups: int
    buckets: int
    shuffle: bool
    seed: int
    strict: bool
    """The first refused record is an error."""
    folder: str
    """Where spills are written."""
    large_bytes: int
    """Memory for records beyond 8 MiB, held by one worker at a time."""
    wide: bool = True
    """Rows have 4 bytes a token: int32."""


@dataclass
class InstructCounts(UnitCounts):
    """What became of a unit; a document is a conversation."""

    counted_tokens: int = 0
    """Tokens that the template lets count."""
    targets: int = 0
    """Those of them that are targets in a row: not left out, and not the first token of a row."""
    padding: int = 0
    long: int = 0
    """Conversations longer than a row."""
    left_out: int = 0
    """Tokens of long conversations that were truncated or dropped."""
    inner_ends: int = 0
    """Conversations that hold the end of text before their end."""

    def add(self, other: UnitCounts) -> None:
        super().add(other)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def take_rows(self, rows: Rows) -> None:
        """Count what rows hold."""
        self.targets += int((rows.tokens[:, 1:] >= 0).sum())
        self.padding += rows.tokens.size - int(rows.pieces["length"].sum(dtype=np.int64))
        self.documents_of_sequences += Lengths.of(np.diff(rows.ends, prepend=0))


@functools.lru_cache(maxsize=1)
def _encoder(work: EncoderWork) -> tuple[SegmentEncoder, tuple[str, ...]]:
    """The process's one encoder, and the tokenizer's special tokens."""
    encoder = encoder_for(work)
    added = json.loads(encoder.reference.json_text).get("added_tokens") or []
    special = tuple(token["content"] for token in added if token.get("special"))
    return SegmentEncoder(encoder, special), special


def do_stretch(task: tuple[InstructWork, Stretch]) -> int:
    """Do some units of one group, one after another; each leaves its spill. Returns how many.

    Raises:
        ValueError: damaged data, a refused record where none is allowed, ids that differ from the reference's.
    """
    work, stretch = task
    with LargeDocuments(work.folder, work.large_bytes) as large, Reader("", large.grow) as reader:
        return do_blocks(stretch, work.unit_bytes, reader, lambda block: _Unit(work, stretch.group, block, reader, large).do())


@dataclass
class _Batch:
    """Conversations on their way to the encoder, with the bytes at which their lines begin."""

    segments: list[list[Segment]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    characters: int = 0

    @property
    def full(self) -> bool:
        return self.characters >= _CHARACTERS or len(self.at) >= _RECORDS


class _Unit:
    """One unit on its way to its spill."""

    def __init__(self, work: InstructWork, group: Group, block: int, reader: Reader, large: LargeDocuments):
        self._work, self._group, self._block, self._reader, self._large = work, group, block, reader, large
        self.counts = InstructCounts()
        self._encoder, self._special = _encoder(work.encoder)
        self._packer = ConversationPacker(work.length)
        self._rows = 0

    def do(self) -> InstructCounts:
        """Read, render, encode, pack and spill."""
        started, work = time.monotonic(), self._work
        checked, checking = self._encoder.checked_tokens, encoder_for(work.encoder).checking_seconds
        writer = SpillWriter(spill_path(work.folder, self._group.index, self._block), work.buckets)
        try:
            for number, part in parts_of_unit(self._group, self._block, work.unit_bytes):
                for batch in self._batches(part):
                    self._take(batch, number, part.file, writer)
                    self._large.release()
            rows, tail, pieces = self._packer.finish()
            self._spill(rows, writer)
            if self._group.long:
                self.counts.last = self._reader.ended(part)
            self.counts.checked_tokens = self._encoder.checked_tokens - checked
            self.counts.checking_seconds = encoder_for(work.encoder).checking_seconds - checking
            self.counts.seconds = time.monotonic() - started
            writer.close(tail, pieces, self.counts.to_json())
        except BaseException as error:
            writer.abandon(error)
            raise
        return self.counts

    def _batches(self, part: Part) -> Iterator[_Batch]:
        batch = _Batch()
        for source, starts, lines in self._reader.lines(part):
            for number, (at, line) in enumerate(zip(starts, lines), source.count - len(lines) + 1):
                if not line or line.isspace():
                    continue
                try:
                    segments = self._segments(line)
                except NotUsableError as error:
                    self._refuse(Refused(part.file, at, str(error), number, source.counted_from))
                    continue
                batch.segments.append(segments)
                batch.at.append(at)
                batch.characters += sum(len(segment.text) for segment in segments)
                if batch.full:
                    yield batch
                    batch = _Batch()
            lines.clear()
        if batch.at:
            yield batch

    def _segments(self, line: bytes) -> list[Segment]:
        work = self._work
        return segments_of(parse_record(line, work.keys), work.template, work.separator, work.loss_on, self._special)

    def _refuse(self, refused: Refused) -> None:
        counts = self.counts
        named = str(refused) if len(counts.refusals) < NAMED_REFUSALS else ""
        if self._work.strict:
            raise ValueError(f"--input-files {named}; mend it, or let such records pass with --max-bad-fraction")
        counts.refused += 1
        counts.refusals += [named] if named else []

    def _take(self, batch: _Batch, file_number: int, file: InputFile, writer: SpillWriter) -> None:
        counts, work = self.counts, self._work
        texts = [segment.text for segments in batch.segments for segment in segments]
        encoded, difference = self._encoder.encode(batch.segments, work.seed)
        if difference is not None:
            owner = np.repeat(batch.at, [len(segments) for segments in batch.segments])
            raise TokenizerDifference(write_difference(work.folder, file, int(owner[difference.index]), difference))
        counts.documents += len(batch.at)
        counts.characters += batch.characters
        counts.utf8_bytes += sum(len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts)
        counts.tokens += len(encoded.tokens)
        counts.counted_tokens += int((encoded.tokens >= 0).sum())
        counts.inner_ends += encoded.inner_ends
        counts.lengths = counts.lengths + Lengths.of(encoded.lengths)
        pieces = np.zeros(len(batch.at), PIECE)
        pieces["file"], pieces["at"], pieces["length"] = file_number, batch.at, encoded.lengths
        eot_id = encoder_for(work.encoder).reference.eot_id
        tokens, pieces, long, left_out = fitted(encoded.tokens, pieces, work.length, work.long, eot_id)
        counts.long += long
        counts.left_out += left_out
        for rows in self._packer.add(tokens, pieces):
            self._spill(rows, writer)

    def _spill(self, rows: Rows, writer: SpillWriter) -> None:
        count, work = len(rows.tokens), self._work
        if not count:
            return
        if work.shuffle:
            bucket_of = shuffle.buckets_of_unit(work.seed, (self._group.index, self._block), self._rows, count, work.buckets)
        else:
            bucket_of = np.full(count, shuffle.bucket_in_order(self._group.index, work.groups, work.buckets))
        self._rows += count
        self.counts.take_rows(rows)
        writer.add(rows, bucket_of)
