"""Segments to ids with their mask. Each segment is encoded by itself, so that the border of what counts lies between two tokens.

In chat templates the borders are special tokens or line ends, at which tokenizers part words anyway: the ids are those of the whole text. A
tokenizer that puts a space before every text it is given (SentencePiece's way) is shown a character that it knows before each segment but
the first, whose ids are taken off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from open_lm.fast_tokenizer import Difference, FastEncoder
from open_lm.tokens.instruct.spans import Segment

_PROBES = ("a", " a", "é", "1")
_LEADS = ("\n", ".")


class Encoded(NamedTuple):
    """Conversations as ids, one after another, each with its end of text.

    tokens: int32 [total]; those that are no targets as ~id.
    lengths: int64 [conversations].
    inner_ends: conversations that hold the end of text before their end.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    inner_ends: int


class SegmentEncoder:
    """Encodes conversations by an encoder of texts.

    Args:
        special: special tokens; a last turn that ends with one has its end, and the end of text after it is no target.
    """

    def __init__(self, encoder: FastEncoder, special: Sequence[str]):
        self._encoder, self._special = encoder, tuple(special)
        self.checked_tokens = 0
        alone = [ids.tolist() for ids in self._encode(_PROBES)]
        self._led = any(self._led_ids(probe, _LEADS[0]) not in (None, ids) for probe, ids in zip(_PROBES, alone))

    def encode(self, conversations: Sequence[Sequence[Segment]], seed: int) -> tuple[Encoded, Difference | None]:
        """The ids of some conversations; and where the encoder's ids differ from the reference's, a sample compared, how.

        Raises:
            ValueError: a segment that can't be encoded by itself.
        """
        texts = [segment.text for segments in conversations for segment in segments]
        ids, offsets = self._encoder.encode_batch(texts)
        checked, difference = self._encoder.check(texts, ids, offsets, seed)
        self.checked_tokens += checked
        pieces = [ids[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist())]
        counts = np.array([segment.counts for segments in conversations for segment in segments], bool)
        first = np.zeros(len(texts), bool)
        first[np.cumsum([0, *(len(segments) for segments in conversations[:-1])])] = True
        if self._led:
            pieces = [piece if begins else self._led_piece(text) for piece, begins, text in zip(pieces, first.tolist(), texts)]
        return self._joined(conversations, pieces, counts), difference

    def _joined(self, conversations: Sequence[Sequence[Segment]], pieces: list[np.ndarray], counts: np.ndarray) -> Encoded:
        sizes = np.array([len(piece) for piece in pieces], np.int64)
        ids = np.concatenate([np.empty(0, np.uint32), *pieces]).astype(np.int32)
        tokens = np.where(np.repeat(counts, sizes), ids, ~ids)
        segments = np.cumsum([len(each) for each in conversations])
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])[segments]
        eot = self._encoder.reference.eot_id
        bare = np.flatnonzero((ends == 0) | (ids[np.maximum(ends, 1) - 1] != eot))
        asked = np.array([self._ends_in_target(each) for each in conversations], bool)
        tokens = np.insert(tokens, ends[bare], np.where(asked[bare], eot, ~eot))
        added = np.zeros(len(ends), np.int64)
        added[bare] = 1
        ends = ends + np.cumsum(added)
        lengths = np.diff(ends, prepend=0)
        held = np.add.reduceat((tokens == eot) | (tokens == ~eot), ends - lengths)
        return Encoded(tokens, lengths, int((held > 1).sum()))

    def _ends_in_target(self, segments: Sequence[Segment]) -> bool:
        """The end of text is what ends the assistant's turn."""
        return segments[-1].counts and not segments[-1].text.endswith(self._special)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids, offsets = self._encoder.encode_batch(texts)
        return [ids[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist())]

    def _led_ids(self, text: str, lead: str) -> list[int] | None:
        """The ids of a text after a lead; None where the lead has not its own ids there."""
        alone, both = (ids.tolist() for ids in self._encode([lead, lead + text]))
        return both[len(alone) :] if both[: len(alone)] == alone else None

    def _led_piece(self, text: str) -> np.ndarray:
        for lead in _LEADS:
            ids = self._led_ids(text, lead)
            if ids is not None:
                return np.array(ids, np.uint32)
        raise ValueError(f"--tokenizer: gives no ids of its own to a turn's text {text[:40]!r} after others; give another tokenizer")
