"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in OpenLM's three forms.

rotary        feature i turns with feature i + k/2; the angle's index is the position
llama_rotary  feature 2i turns with feature 2i + 1
head_rotary   as rotary, but the angle's index is the number of the head (the published 1B and 7B were trained so)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from open_lm.model.config import Positions

Table = tuple[Tensor, Tensor]
"""Cosines and sines, each [index, k/2] or, where positions differ by row, [batch, seq, k/2]; fp32."""


def inverse_frequencies(head_dim: int, theta: float) -> Tensor:
    """theta^(-2i/k) for i < k/2, fp32."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rotary_table(indices: Tensor, head_dim: int, theta: float) -> Table:
    """Cosines and sines for some indices. Always fp32: bf16 frequencies are wrong from about position 256 on.

    Args:
        indices: [n], positions or head numbers; or positions [batch, seq].
    """
    with torch.autocast(indices.device.type, enabled=False):
        angles = indices.float()[..., None] * inverse_frequencies(head_dim, theta).to(indices.device)
        return angles.cos(), angles.sin()


class SavedFrequencies(nn.Module):
    """Holds the `inv_freq` [k/2] that OpenLM's checkpoints have in each layer. Nothing is computed from it."""

    inv_freq: Tensor

    def __init__(self, head_dim: int, theta: float):
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self.register_buffer("inv_freq", inverse_frequencies(head_dim, theta))

    def reset_parameters(self) -> None:
        """The frequencies again, for a module that was made on the meta device."""
        self.inv_freq.copy_(inverse_frequencies(self.head_dim, self.theta))


def rotate(x: Tensor, table: Table, kind: Positions) -> Tensor:
    """Turn the pairs of features of each head.

    Args:
        x: [batch, seq, heads, k].
        table: for positions [seq, k/2] or [batch, seq, k/2], for head_rotary [heads, k/2].

    Returns:
        Like x; computed in fp32.
    """
    cos, sin = (t if kind == "head_rotary" else t[..., None, :] for t in table)
    wide = x.float()
    if kind == "llama_rotary":
        even, odd = wide[..., 0::2], wide[..., 1::2]
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    else:
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.type_as(x)
