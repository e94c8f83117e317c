"""Normalisation layers under OpenLM's names.

The `lp_` layers compute in the autocast type where autocast is on; the others in the type of their input, which autocast
itself turns to fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from open_lm.model.config import Norm


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension; weight and bias where wanted."""

    def __init__(self, dim: int, eps: float, *, gain: bool, bias: bool, low_precision: bool):
        super().__init__()
        self.eps, self.low_precision = eps, low_precision
        self.weight = nn.Parameter(torch.ones(dim)) if gain else None
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.dim = dim

    def reset_parameters(self) -> None:
        """Gain 1, bias 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim]."""
        device = x.device.type
        if not (self.low_precision and torch.is_autocast_enabled(device)):
            return F.layer_norm(x, (self.dim,), self.weight, self.bias, self.eps)
        low = torch.get_autocast_dtype(device)
        weight = self.weight.to(low) if self.weight is not None else None
        bias = self.bias.to(low) if self.bias is not None else None
        with torch.autocast(device, enabled=False):
            return F.layer_norm(x.to(low), (self.dim,), weight, bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the mean in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        """Gain 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim]."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


def make_norm(kind: Norm, dim: int, eps: float) -> nn.Module:
    """The layer of a name of `Norm`."""
    if kind == "rms_norm":
        return RMSNorm(dim, eps)
    return LayerNorm(
        dim,
        eps,
        gain=kind != "no_wb_layer_norm",
        bias=kind in ("default_layer_norm", "lp_layer_norm"),
        low_precision="lp_" in kind,
    )
