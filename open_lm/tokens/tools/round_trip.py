"""Texts to ids and back: which of them return.

A batch of texts in; for each of them EXACT, NORMALISED (what returns is the text as the tokenizer's own normaliser writes it) or CHANGED.
Byte-level tokenizers are decoded through a table of the bytes of each id, 10 times faster than by `tokenizers`, which has the last word
wherever the table finds a difference.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from open_lm.fast_tokenizer import FastEncoder
from open_lm.tokenizer import Tokenizer

EXACT, NORMALISED, CHANGED = 0, 1, 2
_IDS_AT_ONCE = 1 << 16


class Change(NamedTuple):
    """The text of this number in its batch differs from what returns, first at character `at` of what should return."""

    number: int
    at: int
    sent: str
    """From there on, 40 characters."""
    returned: str


class RoundTrip:
    """Encodes and decodes."""

    def __init__(self, encoder: FastEncoder):
        self._encoder = encoder
        self._reference = encoder.reference
        table = byte_table(encoder.reference)
        self._bytes = None if table is None else _Bytes(table)

    def check(self, texts: Sequence[str], data: bytes, ends: np.ndarray) -> tuple[np.ndarray, list[Change]]:
        """What becomes of some texts.

        Args:
            data: the texts one after another, UTF-8.
            ends: int64 [texts], where each of them ends in `data`.

        Returns:
            uint8 [texts], EXACT, NORMALISED or CHANGED; and what is changed.
        """
        ids, offsets = self._encoder.encode_batch(texts)
        found = np.zeros(len(texts), np.uint8)
        changes = []
        for index in self._suspects(texts, ids, offsets, data, ends):
            kind, change = self._judge(index, texts[index], ids[offsets[index] : offsets[index + 1]])
            found[index] = kind
            changes += [change] if change else []
        return found, changes

    def _suspects(self, texts: Sequence[str], ids: np.ndarray, offsets: np.ndarray, data: bytes, ends: np.ndarray) -> list[int]:
        """The texts that are not known to return exactly."""
        if self._bytes is None:
            some = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())]
            back = self._reference.backend.decode_batch(some, skip_special_tokens=False)
            return [i for i, (text, returned) in enumerate(zip(texts, back)) if text != returned]
        returned = self._bytes.of(ids)
        returned_ends = np.concatenate([[0], np.cumsum(self._bytes.sizes[ids], dtype=np.int64)])[offsets[1:]]
        if returned == data and np.array_equal(returned_ends, ends):
            return []
        old, new = [0, *ends.tolist()], [0, *returned_ends.tolist()]
        return [i for i in range(len(texts)) if data[old[i] : old[i + 1]] != returned[new[i] : new[i + 1]]]

    def _judge(self, index: int, text: str, ids: np.ndarray) -> tuple[int, Change | None]:
        returned = self._reference.decode(ids)
        if returned == text:
            return EXACT, None
        normaliser = self._reference.backend.normalizer
        normal = text if normaliser is None else str(normaliser.normalize_str(text))
        if returned == normal:
            return NORMALISED, None
        length = min(len(normal), len(returned))
        at = next((i for i in range(length) if normal[i] != returned[i]), length)
        return CHANGED, Change(index, at, normal[at : at + 40], returned[at : at + 40])


class _Bytes:
    """The bytes of ids, gathered from the bytes of all of them: four times as fast as joining one for each."""

    def __init__(self, table: Sequence[bytes]):
        self.sizes = np.array([len(piece) for piece in table], np.int32)
        self._starts = (np.cumsum(self.sizes, dtype=np.int64) - self.sizes).astype(np.int32)
        self._all = np.frombuffer(b"".join(table), np.uint8)

    def of(self, ids: np.ndarray) -> bytes:
        """Of all ids, one after another."""
        return b"".join(self._of_some(ids[i : i + _IDS_AT_ONCE]) for i in range(0, len(ids), _IDS_AT_ONCE))

    def _of_some(self, ids: np.ndarray) -> bytes:
        sizes = self.sizes[ids]
        ends = np.cumsum(sizes, dtype=np.int32)
        places = np.repeat(self._starts[ids] - (ends - sizes), sizes)
        places += np.arange(len(places), dtype=np.int32)
        return self._all[places].tobytes()


def byte_table(tokenizer: Tokenizer) -> list[bytes] | None:
    """The bytes that each id stands for, b"" for an id without a token; None for a tokenizer that is not byte-level all through.

    Every entry is compared with what `tokenizers` makes of the id.
    """
    if (json.loads(tokenizer.json_text).get("decoder") or {}).get("type") != "ByteLevel":
        return None
    byte_of = _bytes_of_characters()
    table = [b""] * tokenizer.vocab_size
    for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        try:
            table[number] = bytes(byte_of[character] for character in token)
        except KeyError:  # an added token is its own text
            table[number] = token.encode()
    backend = tokenizer.backend
    known = (i for i in range(len(table)) if backend.id_to_token(i) is not None)
    same = all(table[i].decode("utf-8", "replace") == backend.decode([i], skip_special_tokens=False) for i in known)
    return table if same else None


def _bytes_of_characters() -> dict[str, int]:
    """The byte of each character of the byte-level alphabet: printable Latin-1 stands for itself, the rest begins at U+0100 (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
