"""What the loader gives to a training step: `Batch`, and the one convention about masked targets.

A token t >= 0 is read and predicted. A token t < 0 is no target: it is read as id `~t` (-1 - t) and adds nothing to the loss. So
the sign is the loss mask, and a position without any text (`MASKED`, -1) is read as id 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def input_ids(tokens: Tensor) -> Tensor:
    """The ids that a model reads, masked or not: the tokens [...] without their signs, same shape and integer type."""
    return torch.where(tokens < 0, ~tokens, tokens)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one process and what is known about them, on one device.

    Args:
        tokens: [batch, seq_len + 1] int64; negative where masked, see the module.
        document_ids: [batch, seq_len] int32, of each input the number of its document in its row; None when rows are read whole.
        sources: [batch] int64, of each row the index of its source; None when nobody asked.
    """

    tokens: Tensor
    document_ids: Tensor | None = None
    sources: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory without waiting for the copy."""
        return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in self._parts()))  # type: ignore[arg-type]

    def chunk(self, parts: int) -> list[Batch]:
        """The batch in so many groups of consecutive rows, as `torch.chunk` cuts them."""
        tokens = self.tokens.chunk(parts)
        others = [(None,) * len(tokens) if part is None else part.chunk(parts) for part in self._parts()[1:]]
        return [Batch(*values) for values in zip(tokens, *others, strict=True)]

    def put(self, rows: Tensor | slice, part: Batch) -> None:
        """Copy `part`, which has the same fields, into some rows."""
        for mine, theirs in zip(self._parts(), part._parts(), strict=True):
            if mine is not None and theirs is not None:
                if isinstance(rows, slice):
                    mine[rows].copy_(theirs)  # converts on the way
                else:
                    mine[rows] = theirs.to(mine.dtype)

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.tokens, self.document_ids, self.sources
