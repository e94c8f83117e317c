"""An inspected batch as lines for a terminal: where each row lies, its documents, its text with their borders, its ids."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from open_lm.data.documents import Piece
from open_lm.data.inspect import InspectedBatch, InspectedRow
from open_lm.shards.members import MASKED
from open_lm.tokenizer import Tokenizer

_WIDTH = 120
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Shown:
    """What of each row is shown: so many ids (None: all), its text, its documents."""

    ids: int | None = None
    text: bool = False
    sources: bool = False


def page(batch: InspectedBatch, shown: Shown) -> Iterator[str]:
    """The lines of a batch: a head, then one paragraph for each row."""
    yield from _head(batch, shown)
    for row in batch.rows:
        yield ""
        yield from _row(row, shown, batch.tokenizer)


def _head(batch: InspectedBatch, shown: Shown) -> Iterator[str]:
    last = batch.first + batch.global_batch_size - 1
    length = batch.rows[0].tokens.shape[0] - 1
    yield f"{batch.run}, step {batch.step}: rows {batch.first} to {last} of the run, {length + 1} tokens each, the last one only predicted"
    yield f"order: {batch.order}"
    if len(batch.rows) < batch.global_batch_size:
        whose = f"process {batch.rank} of {batch.world_size}: " if batch.world_size > 1 else ""
        yield f"{whose}{len(batch.rows)} of the {batch.global_batch_size} rows of the batch"
    yield from (f"note: {note}" for note in batch.notes)
    if shown.text and batch.tokenizer is None:
        yield "note: no tokenizer lies beside the shards or in the run folder, so that the text can't be shown"


def _row(row: InspectedRow, shown: Shown, tokenizer: Tokenizer | None) -> Iterator[str]:
    yield f"slot {row.slot}, row {row.number} of the run"
    if row.shard >= 0:
        yield f"  source {row.source}: {row.source_name}"
        yield f"  shard {row.shard}: {row.shard_name}"
        end = row.begin + len(row.tokens)
        member = f"member {row.member}, " if row.member else ""
        yield f"  {member}sequence {row.sequence}, its tokens {row.begin} to {end - 1} (row {row.row} of the shard)"
    if shown.sources and row.pieces is not None:
        yield from _sources(row)
    if shown.text and tokenizer is not None:
        yield from _text(row, tokenizer)
    yield from _ids(row.tokens, shown.ids)


def _sources(row: InspectedRow) -> Iterator[str]:
    assert row.pieces is not None
    yield f"  documents: {len(row.pieces)}"
    for number, piece in enumerate(row.pieces, 1):
        yield f"    {number}. {_about(piece)}"
    rest = len(row.tokens) - (row.pieces[-1].end if row.pieces else 0)
    if rest:
        yield f"    the last {rest} tokens are padding"


def _about(piece: Piece) -> str:
    where = f"{piece.file}, {piece.place}"
    return f"tokens {piece.begin} to {piece.end - 1}: {where}, its tokens {piece.start} to {piece.stop - 1}"


def _text(row: InspectedRow, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of each document of the row under a line that tells where it begins."""
    yield "  text:"
    for number, (begin, end) in enumerate(borders(row, tokenizer.eot_id), 1):
        yield f"    ── {number}: tokens {begin} to {end - 1} ".ljust(60, "─")
        tokens = _read(row.tokens[begin:end])
        for line in tokenizer.decode(tokens[tokens != MASKED]).split("\n"):
            yield f"    │ {_CONTROL.sub(lambda m: f'<{ord(m.group()):02x}>', line)}"


def borders(row: InspectedRow, eot_id: int) -> list[tuple[int, int]]:
    """Tokens [begin, end) of each document in a row: from its provenance, without it from one end of text to the next."""
    length = len(row.tokens)
    if row.pieces:
        ends = [piece.end for piece in row.pieces]
    else:
        ends = (np.flatnonzero(_read(row.tokens) == eot_id) + 1).tolist()
    ends += [length] if not ends or ends[-1] < length else []
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _read(tokens: np.ndarray) -> np.ndarray:
    """Ids as a model reads them: shards store a masked target t as ~t; `MASKED` stays."""
    return np.where(tokens < MASKED, ~tokens, tokens)


def _ids(tokens: np.ndarray, limit: int | None) -> Iterator[str]:
    count = len(tokens) if limit is None else min(limit, len(tokens))
    if count == 0:
        return
    yield "  ids:" if count == len(tokens) else f"  ids ({count} of {len(tokens)}):"
    ids = " ".join(map(str, tokens[:count].tolist()))
    yield from textwrap.wrap(ids, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
