"""Documents' ids to one stream and to sequences. Pure."""

from __future__ import annotations

import numpy as np


def end_documents(ids: np.ndarray, offsets: np.ndarray, eot_id: int, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """One stream of documents, each followed by end of text.

    Args:
        ids: [total]; document i is ids[offsets[i]:offsets[i + 1]].
        offsets: [documents + 1].

    Returns:
        [total + documents] of `dtype`, which must hold every id.
    """
    documents = len(offsets) - 1
    out = np.empty(len(ids) + documents, dtype)
    ends = offsets[1:] + np.arange(documents)
    is_text = np.ones(len(out), bool)
    is_text[ends] = False
    out[ends] = eot_id
    out[is_text] = ids
    return out


def cut(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole sequences [n, length] and the rest [fewer than length], in order, as views."""
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length), tokens[count * length :]


def pad(tail: np.ndarray, length: int, token: int) -> np.ndarray:
    """A tail [1 to length] as one sequence [1, length], filled up with `token`."""
    assert 0 < len(tail) <= length
    out = np.full((1, length), token, tail.dtype)
    out[0, : len(tail)] = tail
    return out
