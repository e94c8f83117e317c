"""Figures of a corpus: of texts, as they would be cut into sequences, or of a folder of shards that make_2048.py wrote.

Texts in, or stats.json and provenance; `TextFigures` or `ShardFigures` out, as lines of a table and as JSON. Tokens of a document count
its end of text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from open_lm import storage
from open_lm.shards import provenance
from open_lm.tokens import stats
from open_lm.tokens.destination import STATS
from open_lm.tokens.histogram import Fill
from open_lm.tokens.lengths import Lengths
from open_lm.tokens.reading.reader import Batch
from open_lm.tokens.unit import EncoderWork, encoder_for

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
Rows = list[tuple[str, str]]


@dataclass
class TextFigures:
    """Of some texts; they add up.

    A sequence is `length` tokens. `own_sequences`: those that a corpus would need whose documents each begin a sequence, the last one
    padded; `whole_documents`: those that fit into one.
    """

    length: int
    documents: int = 0
    refused: int = 0
    empty: int = 0
    characters: int = 0
    utf8_bytes: int = 0
    own_sequences: int = 0
    whole_documents: int = 0
    lengths: Lengths = field(default_factory=Lengths)
    """Of the documents, in tokens."""
    parts: Lengths = field(default_factory=Lengths)
    """Of sequences that are packed in the order of the texts, how many documents have tokens in each."""

    def add(self, other: TextFigures) -> None:
        """Take in the figures of other texts."""
        assert self.length == other.length
        for name, value in vars(other).items():
            if name != "length":
                setattr(self, name, getattr(self, name) + value)

    @property
    def tokens(self) -> int:
        return self.lengths.total

    @property
    def fill(self) -> Fill:
        """Of packed sequences; the tokens after the last whole one are left out."""
        return Fill(self.length, self.tokens - self.tokens % self.length, 0, self.parts)

    @property
    def padded_ratio(self) -> float:
        """Share of the positions that would hold tokens, were every document to begin a sequence of its own."""
        return self.tokens / (self.own_sequences * self.length) if self.own_sequences else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, with the lengths as their bins and quantiles."""
        plain = {name: value for name, value in vars(self).items() if not isinstance(value, Lengths)}
        return {
            **plain,
            "tokens": self.tokens,
            "characters_per_token": _ratio(self.characters, self.tokens),
            "bytes_per_token": _ratio(self.utf8_bytes, self.tokens),
            "packed_sequences": self.tokens // self.length,
            "left_over_tokens": self.tokens % self.length,
            "fill_ratio_packed": self.fill.ratio,
            "fill_ratio_padded": self.padded_ratio,
            "document_lengths": _described(self.lengths),
            "documents_per_sequence": _described(self.parts),
        }

    def rows(self) -> Rows:
        """The lines of the table."""
        return [
            ("documents", f"{self.documents:,}"),
            ("documents refused", f"{self.refused:,}"),
            ("empty documents", f"{self.empty:,}"),
            *_text_rows(self.characters, self.utf8_bytes, self.tokens),
            *_length_rows(self.lengths),
            (f"sequences of {self.length}, packed", f"{self.tokens // self.length:,}"),
            ("tokens left over", f"{self.tokens % self.length:,}"),
            ("fill, packed", f"{self.fill.ratio:.2%}"),
            ("fill, a document a sequence", f"{self.padded_ratio:.2%}"),
            ("documents of one sequence at most", f"{_ratio(self.whole_documents, self.documents):.2%}"),
            ("documents per packed sequence", f"{self.parts.mean:,.2f}"),
        ]


class TextVisitor:
    """Counts texts; `figures` is what it has found.

    Args:
        length: tokens of a sequence.
    """

    def __init__(self, work: EncoderWork, length: int):
        self._work = work
        self._begun = Begun()
        self.figures = TextFigures(length)

    def visit(self, number: int, batch: Batch) -> None:
        """Encode a batch and count."""
        figures, texts = self.figures, batch.texts
        figures.refused += len(batch.refused)
        if not texts:
            return
        _, offsets = encoder_for(self._work).encode_batch(texts)
        lengths = np.diff(offsets) + 1
        figures.documents += len(texts)
        figures.empty += texts.count("")
        figures.characters += sum(map(len, texts))
        figures.utf8_bytes += sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
        figures.own_sequences += int((-(-lengths // figures.length)).sum())
        figures.whole_documents += int((lengths <= figures.length).sum())
        figures.lengths += Lengths.of(lengths)
        parts, self._begun = documents_per_sequence(lengths, figures.length, self._begun)
        figures.parts += Lengths.of(parts)


class Begun(NamedTuple):
    """A sequence that is not full: tokens in it, and documents that they belong to."""

    tokens: int = 0
    documents: int = 0


def documents_per_sequence(lengths: np.ndarray, length: int, begun: Begun) -> tuple[np.ndarray, Begun]:
    """How many documents have tokens in each sequence that some documents, one after another, bring to its end. Pure.

    Args:
        lengths: [documents], tokens of each, 1 or more.
        begun: the sequence that they go on with.

    Returns:
        int64 [sequences that become full], and the sequence that is begun then.
    """
    ends = begun.tokens + np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else begun.tokens
    borders = np.arange(total // length + 1, dtype=np.int64) * length
    first = np.searchsorted(ends, borders, side="right")  # document in which each sequence begins
    counts = np.searchsorted(ends, borders[1:] - 1, side="right") - first[:-1] + 1
    left = Begun(total % length, len(lengths) - int(first[-1]))
    if len(counts):
        counts[0] += begun.documents
        return counts, left
    return counts, Begun(left.tokens, left.documents + begun.documents)


@dataclass(frozen=True)
class ShardFigures:
    """Of a folder of shards."""

    counts: stats.Counts
    lengths: Lengths
    parts: Lengths | None
    """Documents with tokens in a sequence, where the folder has its provenance."""
    whole_sequences: int | None
    """Sequences that hold a document from its first token to its last, one or more of them."""

    @property
    def fill(self) -> Fill:
        counts = self.counts
        return Fill(counts.tokens_per_sequence, counts.tokens - counts.dropped_tokens, counts.padding_tokens, self.parts)

    def to_json(self) -> dict[str, Any]:
        """Everything, with the lengths as their bins and quantiles."""
        counts = self.counts
        return {
            **vars(counts),
            "characters_per_token": _ratio(counts.characters, counts.tokens),
            "bytes_per_token": _ratio(counts.utf8_bytes, counts.tokens),
            "fill_ratio": self.fill.ratio,
            "document_lengths": _described(self.lengths),
            "documents_per_sequence": None if self.parts is None else _described(self.parts),
            "sequences_with_a_whole_document": self.whole_sequences,
        }

    def rows(self) -> Rows:
        """The lines of the table."""
        counts = self.counts
        more: Rows = []
        if self.parts is not None:
            more.append(("documents per sequence", f"{self.parts.mean:,.2f}"))
        if self.whole_sequences is not None:
            more.append(("sequences with a whole document", f"{_ratio(self.whole_sequences, counts.sequences):.2%}"))
        return [
            ("documents", f"{counts.documents_read:,}"),
            ("documents refused", f"{counts.documents_refused:,}"),
            *_text_rows(counts.characters, counts.utf8_bytes, counts.tokens),
            *_length_rows(self.lengths),
            ("shards", f"{counts.shards:,}"),
            (f"sequences of {counts.tokens_per_sequence}", f"{counts.sequences:,}"),
            ("tokens dropped at the end", f"{counts.dropped_tokens:,}"),
            ("tokens of padding", f"{counts.padding_tokens:,}"),
            ("fill", f"{self.fill.ratio:.2%}"),
            *more,
        ]


def of_shards(folder: str) -> ShardFigures:
    """The figures of a folder that make_2048.py wrote, the one with stats.json (a `<seq_len>-v1`, or the folder that holds one).

    Raises:
        ValueError: no such folder, or one that make_2048.py did not finish.
    """
    root = _root(folder)
    try:
        counts, values = stats.from_json(storage.read_bytes(storage.join(root, STATS)))
        lengths = Lengths.from_json(values["document_lengths"])
    except FileNotFoundError:
        raise ValueError(f"--shards {folder}: has no {STATS}; give the folder that make_2048.py finished") from None
    except (ValueError, KeyError) as error:
        raise ValueError(f"--shards {folder}: its {STATS} {error}; make the shards anew with this version") from None
    parts, whole = _of_provenance(root, counts.documents_read)
    return ShardFigures(counts, lengths, parts, whole)


def _root(folder: str) -> str:
    """The folder itself, or the only one in it, two levels at most, that has a stats.json."""
    if storage.is_remote(folder) or (storage.local_path(folder) / STATS).is_file():
        return folder
    found = sorted(storage.local_path(folder).glob(f"*-v1/{STATS}"))
    if len(found) > 1:
        raise ValueError(f"--shards {folder}: holds {' and '.join(path.parent.name for path in found)}; name one of them")
    return str(found[0].parent) if found else folder


def _of_provenance(root: str, documents: int) -> tuple[Lengths | None, int | None]:
    """Documents per sequence, and sequences with a whole document; None without provenance."""
    try:
        files = [s.url for s in storage.list_files(storage.join(root, provenance.FOLDER) + "/") if s.url.endswith(".npz")]
    except FileNotFoundError:
        files = []
    parts, whole = Lengths(), 0
    for url in files:
        try:
            found = provenance.from_bytes(storage.read_bytes(url))
        except ValueError as error:
            raise ValueError(f"--shards {root}: {url} {error}") from None
        parts += Lengths.of(np.diff(found.ends, prepend=0))
        whole += int(whole_documents(found).astype(bool).sum())
    return (parts, whole) if files else (None, None)


def whole_documents(found: provenance.Provenance) -> np.ndarray:
    """How many documents each sequence holds from the first token to the last, int64 [sequences]; one that fills it exactly is not seen.

    A piece is a whole document when it begins with the document's first token and another document follows it in its sequence.
    """
    begins = np.concatenate([[0], found.ends[:-1]])
    last = np.zeros(len(found.start), bool)
    last[found.ends[found.ends > begins] - 1] = True
    whole = np.concatenate([[0], np.cumsum((found.start == 0) & ~last)])
    return whole[found.ends] - whole[begins]


def table(rows: Rows, form: str) -> str:
    """Rows as lines of text (`plain`) or as a table in Markdown (`markdown`)."""
    if form == "plain":
        return "\n".join(f"{name:<36} {value:>18}" for name, value in rows)
    return "\n".join(["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)])


def to_json_text(figures: TextFigures | ShardFigures) -> str:
    """The JSON file's content."""
    return json.dumps(figures.to_json(), indent=2) + "\n"


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def _described(lengths: Lengths) -> dict[str, Any]:
    return {"mean": lengths.mean, "quantiles": {f"{q:g}": round(lengths.quantile(q), 1) for q in QUANTILES}, **lengths.to_json()}


def _text_rows(characters: int, utf8_bytes: int, tokens: int) -> Rows:
    return [
        ("characters", f"{characters:,}"),
        ("UTF-8 bytes", f"{utf8_bytes:,}"),
        ("tokens, with ends of text", f"{tokens:,}"),
        ("characters per token", f"{_ratio(characters, tokens):.3f}"),
        ("bytes per token", f"{_ratio(utf8_bytes, tokens):.3f}"),
    ]


def _length_rows(lengths: Lengths) -> Rows:
    named = [(f"document length, {100 * q:g} % up to about", f"{lengths.quantile(q):,.0f}") for q in QUANTILES]
    return [
        ("shortest document, tokens", f"{lengths.smallest:,}"),
        *named,
        ("longest document, tokens", f"{lengths.largest:,}"),
        ("mean length of the documents", f"{lengths.mean:,.1f}"),
    ]
