"""Feed-forward layers: SwiGLU, GELU and GEGLU (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from open_lm.model.config import ModelConfig


class SwiGLU(nn.Module):
    """w3(silu(gate) * up), gate and up the two halves of w12. No biases."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden, bias=False)
        self.w3 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim]."""
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class GeGLU(nn.Module):
    """down(gelu(gate) * up), exact GELU, with biases (gemma_geglu)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden)
        self.up_proj = nn.Linear(dim, hidden)
        self.down_proj = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim]."""
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))


def make_feed_forward(config: ModelConfig) -> nn.Module:
    """The layer of `config.ffn_type`; gelu is Linear, exact GELU, Linear without biases."""
    dim, hidden = config.hidden_dim, config.ffn_dim
    if config.ffn_type in ("swiglu", "swiglu_torch"):
        return SwiGLU(dim, hidden)
    if config.ffn_type == "gemma_geglu":
        return GeGLU(dim, hidden)
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False))
