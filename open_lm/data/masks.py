"""Which targets of a row count, and which of its tokens belong to one document: functions of the row's tokens alone.

`--target-mask-left L` masks the targets up to and including the last L of a row, `--target-mask-individual P` those that are P. Masked
targets are made negative (see `batch`). `--squash-mask-left` then takes every L out of the row and closes the gaps:

    row                  a  b  c  L  d  e  L  f  P  P      (~ is masked)
    left                 a ~b ~c ~L ~d ~e ~L  f  P  P
    left, individual     a ~b ~c ~L ~d ~e ~L  f ~P ~P
    with squash          a ~b ~c ~d ~e  f ~P ~P ~P ~P

The row is filled up with masked P, or with `MASKED` without --target-mask-individual. OpenLM shifts inputs and targets apart, which
gives the same targets after the same inputs, but for a row that begins with L: there it asks for the token that it has just shown.
An L that the data mask already (`~L`) is an L like any other; only for L = 0 it can't be told from padding, which is -1 as well, and isn't.

`--document-mask` numbers the documents of a row. An end of text belongs to the document that it ends; masked ones end theirs as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from open_lm.params.data import DataParams
from open_lm.shards.members import MASKED


@dataclass(frozen=True)
class Masks:
    """What is done to rows of training data after they are read; validation rows are left as they are.

    Args:
        left, individual: token ids, see the module; None for no such mask.
        squash_left: take every `left` out of the row.
        document_end: id of the end of text where documents are told apart, None where they are not.
    """

    left: int | None = None
    individual: int | None = None
    squash_left: bool = False
    document_end: int | None = None

    @classmethod
    def of(cls, params: DataParams, vocab_size: int, end_of_text: set[int]) -> Masks:
        """The masks that the options ask for.

        Args:
            end_of_text: ids that the sources end documents with.

        Raises:
            ValueError: an id that no row can hold, or documents that end in several ways.
        """
        for flag, token in (("--target-mask-left", params.target_mask_left), ("--target-mask-individual", params.target_mask_individual)):
            if token is not None and not 0 <= token < vocab_size:
                raise ValueError(f"{flag} {token}: the vocabulary has the ids 0 to {vocab_size - 1}, so no target is ever that")
        if params.document_mask and len(end_of_text) != 1:
            ids = ", ".join(map(str, sorted(end_of_text)))
            raise ValueError(f"--document-mask: the sources end documents with different ids ({ids}); give the --tokenizer of all of them")
        end = next(iter(end_of_text)) if params.document_mask else None
        return cls(params.target_mask_left, params.target_mask_individual, params.squash_mask_left, end)

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens with masked targets negative and, where asked, squashed: [n, seq_len + 1], a signed type, as given."""
        if self.left is None and self.individual is None:
            return tokens
        masked = np.zeros(tokens.shape, dtype=bool)
        if self.left is not None:
            lefts = (np.where(tokens < 0, ~tokens, tokens) == self.left) & (tokens != MASKED)
            masked |= np.logical_or.accumulate(lefts[:, ::-1], axis=1)[:, ::-1]
        if self.individual is not None:
            masked |= tokens == self.individual
        masked[:, 0] = False  # read only: the first token of a row is nobody's target
        out = np.where(masked & (tokens >= 0), ~tokens, tokens)
        return self._squashed(out, lefts) if self.squash_left and self.left is not None else out

    def _squashed(self, tokens: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """The tokens that are not `taken`, moved to the left."""
        moved = np.take_along_axis(tokens, np.argsort(taken, axis=1, kind="stable"), axis=1)
        filled = np.arange(tokens.shape[1]) < (~taken).sum(axis=1, keepdims=True)
        return np.where(filled, moved, tokens.dtype.type(MASKED if self.individual is None else ~self.individual))

    def document_ids(self, tokens: np.ndarray) -> np.ndarray | None:
        """int32 [n, seq_len]: of each input the ends of text before it in its row. None where documents are not told apart."""
        if self.document_end is None:
            return None
        inputs = tokens[:, :-1]
        ends = np.where(inputs < 0, ~inputs, inputs) == self.document_end
        return np.cumsum(ends, axis=1, dtype=np.int32) - ends


NO_MASKS = Masks()
"""Rows as they were read."""
