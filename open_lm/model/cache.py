"""Keys and values of what a model has read, so that what follows is read without reading it again.

Per layer [batch, read, kv_heads, k]. Rows may differ in length: `seen` [batch, read] tells real positions from padding, which no later
query attends to. Prompts are padded at the right; a position is the number of real ones before it, so that a row gets the same
hidden states, up to rounding, as alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Empty at first; each forward pass of the model with it adds what it reads. `real` is set before a pass that holds padding."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.seen: Tensor | None = None
        self.real: Tensor | None = None
        """bool [batch, seq] of the next pass: True where its ids are no padding. None: all are real."""
        self._rows: Tensor | None = None
        self._keep = True

    def begin(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Called by the model before its layers: where the ids stand, and who sees whom.

        Returns:
            positions [batch, seq] and mask bool [batch, 1, seq, read + seq]; [seq] and None (causal) when nothing was read before.
        """
        batch, seq = input_ids.shape
        real = torch.ones_like(input_ids, dtype=torch.bool) if self.real is None else self.real
        self.real = None
        steps = torch.arange(seq, device=input_ids.device)
        if self.seen is None:
            self.seen = real
            return steps, None
        before = self.seen if self._rows is None else self.seen[self._rows]
        positions = before.sum(dim=1, keepdim=True) + steps
        causal = (steps[:, None] >= steps).expand(batch, seq, seq)
        mask = torch.cat((before[:, None].expand(batch, seq, before.shape[1]), causal), dim=2)[:, None]
        if self._keep:
            self.seen = torch.cat((before, real), dim=1)
        return positions, mask

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [batch, read + seq, kv_heads, k] of a layer, the new ones [batch, seq, kv_heads, k] last."""
        if layer in self.layers:
            past = self.layers[layer]
            old_k, old_v = past if self._rows is None else (past[0][self._rows], past[1][self._rows])
            k, v = torch.cat((old_k, k), dim=1), torch.cat((old_v, v), dim=1)
        if self._keep:
            self.layers[layer] = k, v
        return k, v

    def branches(self, rows: Tensor) -> KeyValueCache:
        """A cache for one pass whose row i goes on from row `rows[i]` of this one; it copies one layer at a time and keeps nothing."""
        branch = KeyValueCache()
        branch.layers, branch.seen, branch._rows, branch._keep = self.layers, self.seen, rows, False
        return branch

    def keep_rows(self, rows: Tensor) -> None:
        """Forget all rows but `rows` (indices, in the order wanted)."""
        self.layers = {layer: (k[rows], v[rows]) for layer, (k, v) in self.layers.items()}
        if self.seen is not None:
            self.seen = self.seen[rows]
