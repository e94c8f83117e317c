"""`FastEncoder`: many texts to the ids that `tokenizers` gives, through gigatoken where that is certain.

Texts of a batch are joined by end-of-text tokens, encoded in one go, and come back as one stream (a list of texts costs gigatoken twice
as much for short ones). What gigatoken may not have is encoded alone: texts with young characters, with special-token strings that
are to be escaped, and very long texts, piece by piece.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from open_lm.fast_tokenizer.cuts import may_cut, pieces, tail
from open_lm.fast_tokenizer.engine import Gigatoken
from open_lm.fast_tokenizer.proof import is_byte_level, probe_texts, separator, unproven
from open_lm.fast_tokenizer.young import young_positions
from open_lm.tokenizer import Engine, Tokenizer

STORE_BYTES = 40 << 20
"""Memory that gigatoken's store of words may take."""
_JOINED = 256 << 10
"""Characters that are joined. gigatoken normalises all of a joined text if any of it needs that."""
_LONG = 1 << 20
"""Characters of a text that is encoded in pieces of that size."""
_SMALL = 4096
"""Characters of a piece that is left to `tokenizers`, whose memory is over a hundred times the text."""
_CHECKED_SHARE, _CHECKED_AT_LEAST = 4000, 128
"""Of the ids, one in so many is checked; and of a batch at least so many."""


@dataclass(frozen=True)
class Difference:
    """A text for which gigatoken and `tokenizers` gave different ids."""

    index: int
    """In its batch."""
    text: str
    """Or the part of it that was compared."""
    ids: list[int]
    expected: list[int]


class Documents(NamedTuple):
    """Encoded documents as one stream, each followed by end of text.

    tokens: [total]. offsets: int64 [documents + 1], document i with its begin and end of text is tokens[offsets[i]:offsets[i + 1]].
    """

    tokens: np.ndarray
    offsets: np.ndarray
    begun: bool
    """Each has a begin of sequence."""


class _Joined(NamedTuple):
    """Some texts of a batch. data: all of them, b"" in the place of those of `alone`, each followed by the separator."""

    texts: Sequence[str]
    parts: list[bytes]
    data: bytes
    alone: list[int]


class FastEncoder:
    """Many texts to ids: through gigatoken where it gives the tokenizer's ids, else through `tokenizers`.

    Args:
        tokenizer: the reference.
        engine: `auto` takes gigatoken when it loads the tokenizer, agrees on a few hundred texts, and is proven to treat such a tokenizer
            as `tokenizers` does; `gigatoken` insists on the first two; `hf` takes the reference.
        escape_special: special-token strings inside texts become ordinary text. Else they become the special token, as in `tokenizers`.
        verify: whether `check` does anything.
        store_bytes: memory for gigatoken's store of words.

    Raises:
        ValueError: gigatoken was asked for and can't be had.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        engine: Engine = "auto",
        escape_special: bool = False,
        verify: bool = True,
        store_bytes: int = STORE_BYTES,
    ):
        self.reference = tokenizer
        self.reason = ""
        """Why gigatoken is not used, when it was not turned down."""
        self.checking_seconds = 0.0
        """Spent in `check` so far."""
        self._escape, self._verify = escape_special, verify
        config = json.loads(tokenizer.json_text)
        tokens = config.get("added_tokens") or []
        self._cuttable = not unproven(config) and is_byte_level(config) and may_cut(tokens)
        self._special = np.zeros(tokenizer.vocab_size, bool)
        self._special[[token["id"] for token in tokens if token.get("special")]] = True
        self._separator = separator(config, tokenizer.eot_token)
        self._fast: Gigatoken | None = None
        if engine != "hf":
            self.reason = "" if engine == "gigatoken" else unproven(config)
            self.reason = self.reason or self._load(probe_texts(config), store_bytes)
        if engine == "gigatoken" and self._fast is None:
            raise ValueError(f"--tokenizer-engine gigatoken: {self.reason}; use --tokenizer-engine hf")

    def _load(self, probes: list[str], store_bytes: int) -> str:
        """Returns why gigatoken can't be used, or ""."""
        try:
            fast = Gigatoken(self.reference.json_text, store_bytes)
            found = fast.encode_all([text.encode() for text in probes], np.uint32)
        except Exception as error:  # each unsupported kind of tokenizer raises its own exception
            return f"gigatoken does not load it: {' '.join(str(error).split())}"
        if [ids.tolist() for ids in found] != [self.reference.encode(text) for text in probes]:
            return "gigatoken gives other ids than tokenizers"
        self._fast = fast
        return ""

    @property
    def engine(self) -> Engine:
        """The one in use, gigatoken or hf."""
        return "hf" if self._fast is None else "gigatoken"

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many texts, nothing added.

        Returns:
            ids uint32 [total], and offsets int64 [texts + 1]: text i has ids[offsets[i]:offsets[i + 1]].
        """
        tokens, ends = self._stream(texts, np.uint32)
        is_text = np.ones(len(tokens), bool)
        is_text[ends] = False
        return tokens[is_text], np.concatenate([np.zeros(1, np.int64), ends - np.arange(len(ends))])

    def encode_documents(self, texts: Sequence[str], dtype: type[np.unsignedinteger], bos_id: int | None = None) -> Documents:
        """Ids of many texts, each followed by end of text, and after `bos_id` if there is one. Cheaper than `encode_batch`.

        Args:
            dtype: must hold every id.
        """
        tokens, ends = self._stream(texts, dtype)
        offsets = np.concatenate([np.zeros(1, np.int64), ends + 1])
        if bos_id is None:
            return Documents(tokens, offsets, False)
        offsets += np.arange(len(offsets))
        out = np.empty(len(tokens) + len(texts), dtype)
        is_text = np.ones(len(out), bool)
        is_text[offsets[:-1]] = False
        out[is_text] = tokens
        out[offsets[:-1]] = bos_id
        return Documents(out, offsets, True)

    def _stream(self, texts: Sequence[str], dtype: type[np.unsignedinteger]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of `dtype`, each text followed by end of text; and where the ends are, int64 [texts]."""
        if self._fast is None or self._separator is None:
            return _ended(self._one_by_one(texts, dtype), self.reference.eot_id, dtype)
        groups = [self._join(texts[a:b]) for a, b in _groups(texts)]
        found = self._fast.encode_all([group.data for group in groups], dtype)
        streams, ends, total = [], [np.empty(0, np.int64)], 0
        for group in groups:
            stream, at = self._part(group, found.pop(0), dtype)
            streams.append(stream)
            ends.append(at + total)
            total += len(stream)
        return streams[0] if len(streams) == 1 else np.concatenate([np.empty(0, dtype), *streams]), np.concatenate(ends)

    def _join(self, texts: Sequence[str]) -> _Joined:
        assert self._separator is not None
        if len(texts) == 1 and len(texts[0]) > _LONG:
            return _Joined(texts, [b""], self._separator, [0])
        parts = [text.encode() for text in texts]
        data = self._separator.join([*parts, b""])
        young = young_positions(data)
        if not len(young):
            return _Joined(texts, parts, data, [])
        ends = np.cumsum([len(part) + len(self._separator) for part in parts])
        alone = np.unique(np.searchsorted(ends, young, side="right")).tolist()
        for i in alone:
            parts[i] = b""
        return _Joined(texts, parts, self._separator.join([*parts, b""]), alone)

    def _part(self, group: _Joined, ids: np.ndarray, dtype: type[np.unsignedinteger]) -> tuple[np.ndarray, np.ndarray]:
        """The stream of a group out of the ids of its `data`."""
        alone, parts = group.alone, group.parts
        ends = np.flatnonzero(ids == self.reference.eot_id)
        if len(ends) > len(parts):  # some texts hold the end of text
            held = np.array([part.count(self._separator or b"") for part in parts])
            ends = ends[np.cumsum(held + 1) - 1]
        if self._escape:
            of_texts = np.setdiff1d(np.flatnonzero(self._special[ids]), ends, assume_unique=True)
            alone = alone + np.unique(np.searchsorted(ends, of_texts)).tolist()
        if not alone:
            return ids, ends
        return _insert(ids, ends, {i: self._alone(group.texts[i], dtype) for i in sorted(alone)})

    def _one_by_one(self, texts: Sequence[str], dtype: type[np.unsignedinteger]) -> list[np.ndarray]:
        """Ids of each text, by an engine that can't have them joined."""
        short = [i for i, text in enumerate(texts) if len(text) <= _LONG]
        if self._fast is None:
            known = {i: np.array(ids, dtype) for i, ids in zip(short, self._refer([texts[i] for i in short]))}
        else:
            raw = {i: texts[i].encode() for i in short}
            short = [i for i in short if not len(young_positions(raw[i]))]
            known = dict(zip(short, self._fast.encode_all([raw[i] for i in short], dtype)))
            if self._escape:
                known = {i: ids for i, ids in known.items() if not self._special[ids].any()}
        return [known[i] if i in known else self._alone(texts[i], dtype) for i in range(len(texts))]

    def _alone(self, text: str, dtype: type[np.unsignedinteger]) -> np.ndarray:
        """Ids of one text."""
        parts = pieces(text, _LONG) if self._cuttable else [text]
        found = [self._piece(part, dtype) for part in parts]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _piece(self, text: str, dtype: type[np.unsignedinteger]) -> np.ndarray:
        """Ids of a text. What `tokenizers` must have is narrowed down to small pieces if the tokenizer allows that."""
        raw = text.encode()
        if self._fast is not None and not len(young_positions(raw)):
            ids = self._fast.encode_all([raw], dtype)[0]
            if not (self._escape and self._special[ids].any()):
                return ids
        parts = list(pieces(text, max(_SMALL, len(text) // 16))) if self._cuttable else [text]
        if len(parts) > 1:
            return np.concatenate([self._piece(part, dtype) for part in parts])
        return np.array(self._refer([text])[0], dtype)

    def _refer(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids by `tokenizers`."""
        backend = self.reference.backend
        backend.encode_special_tokens = self._escape
        try:
            if len(texts) == 1:  # encode_batch would start threads
                return [list(backend.encode(texts[0], add_special_tokens=False).ids)]
            return [list(e.ids) for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        finally:
            backend.encode_special_tokens = False

    def check(self, texts: Sequence[str], ids: np.ndarray, offsets: np.ndarray, seed: int) -> tuple[int, Difference | None]:
        """Compare a seeded sample of what `encode_batch` gave with the reference: 1 of 4000 ids, at least 128.

        Of longer texts a piece is encoded anew both ways, and the end compared with what was given.

        Returns:
            How many ids were compared, and the difference if there is one.
        """
        return self._timed_check(texts, ids, offsets[:-1], offsets[1:], seed)

    def check_documents(self, texts: Sequence[str], documents: Documents, seed: int) -> tuple[int, Difference | None]:
        """`check` for what `encode_documents` gave."""
        starts, stops = documents.offsets[:-1] + int(documents.begun), documents.offsets[1:] - 1
        return self._timed_check(texts, documents.tokens, starts, stops, seed)

    def _timed_check(
        self, texts: Sequence[str], ids: np.ndarray, starts: np.ndarray, stops: np.ndarray, seed: int
    ) -> tuple[int, Difference | None]:
        if not self._verify or self._fast is None or not texts:
            return 0, None
        started = time.perf_counter()
        try:
            return self._compare_sample(texts, ids, starts, stops, np.random.default_rng((seed, len(texts), len(ids))))
        finally:
            self.checking_seconds += time.perf_counter() - started

    def _compare_sample(
        self, texts: Sequence[str], ids: np.ndarray, starts: np.ndarray, stops: np.ndarray, rng: np.random.Generator
    ) -> tuple[int, Difference | None]:
        budget, compared = max(len(ids) // _CHECKED_SHARE, _CHECKED_AT_LEAST), 0
        order = rng.integers(0, len(texts), 32)
        lengths = (stops - starts)[order]
        for index in order[lengths <= budget].tolist():
            given = ids[starts[index] : stops[index]].tolist()
            if compared + len(given) > budget:
                break
            expected = self._refer([texts[index]])[0]
            if given != expected:
                return compared, Difference(index, texts[index], given, expected)
            compared += len(given)
        if compared:
            return compared, None
        index = int(order[0])
        return self._compare_part(index, texts[index], ids[starts[index] : stops[index]], budget, rng)

    def _compare_part(
        self, index: int, text: str, given: np.ndarray, budget: int, rng: np.random.Generator
    ) -> tuple[int, Difference | None]:
        """A piece of a text anew, and its end as given."""
        start = int(rng.integers(0, max(1, len(text) - budget // 2)))
        piece = text[start : start + budget // 2]
        ours, expected = self.encode_batch([piece])[0].tolist(), self._refer([piece])[0]
        if ours != expected:
            return 0, Difference(index, piece, ours, expected)
        end = tail(text, budget // 2) if self._cuttable else ""
        wanted = self._refer([end])[0] if end else []
        last = given[len(given) - len(wanted) :].tolist()
        if last != wanted:
            return len(expected), Difference(index, end, last, wanted)
        return len(expected) + len(wanted), None


def _groups(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of texts, first and last + 1, of about `_JOINED` characters; a long text is a run of its own."""
    if not texts:
        return
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    long = lengths > _LONG
    before = np.cumsum(lengths) - lengths
    starts = np.flatnonzero(np.diff(before // _JOINED, prepend=-1) | long | np.roll(long, 1))
    yield from zip(starts.tolist(), [*starts[1:].tolist(), len(texts)])


def _ended(pieces_of_ids: list[np.ndarray], eot_id: int, dtype: type[np.unsignedinteger]) -> tuple[np.ndarray, np.ndarray]:
    """One stream with ends of text, and where they are."""
    end = np.full(1, eot_id, dtype)
    stream = np.concatenate([np.empty(0, dtype), *(part for ids in pieces_of_ids for part in (ids, end))])
    return stream, np.cumsum([len(ids) + 1 for ids in pieces_of_ids], dtype=np.int64) - 1


def _insert(tokens: np.ndarray, ends: np.ndarray, texts: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Put the ids of some texts, in the order of their indices, in the place of what the stream has for them."""
    out, position = [], 0
    longer = np.zeros(len(ends), np.int64)
    for i, ids in texts.items():
        start = int(ends[i - 1]) + 1 if i else 0
        out += [tokens[position:start], ids]
        position = int(ends[i])
        longer[i] = len(ids) - (position - start)
    return np.concatenate([*out, tokens[position:]]), ends + np.cumsum(longer)
