"""Causal self-attention: projections, optional query/key norms, rotary, and the kernel.

With `mask` (see `document_mask`) a position attends to the earlier ones of its own document only. The mask is made once a forward
pass and shared by the layers: batch x seq^2 bytes, 32 MiB for 8 rows of 2048; without documents there is none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from open_lm.model.cache import KeyValueCache
from open_lm.model.config import ModelConfig
from open_lm.model.norms import make_norm
from open_lm.model.rotary import SavedFrequencies, Table, rotate

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""q [batch, seq, heads, k], k and v [batch, seq, kv_heads, k], mask None (causal) or bool [batch, 1, seq, seq] that is True where a query
sees a key (with a cache [batch, 1, seq, keys], the keys then being longer than the queries), to [batch, seq, heads, k]; scale 1/sqrt(k)."""
Past = tuple[KeyValueCache, int]
"""A cache and the layer's place in it."""
KernelName = Literal["auto", "torch_attn", "xformers_attn"]


def document_mask(document_ids: Tensor) -> Tensor:
    """bool [batch, 1, seq, seq] from document ids [batch, seq]: True where the key is the query or before it, in the same document."""
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same.tril_()


def torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's scaled_dot_product_attention."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped).transpose(1, 2)


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """xformers' memory-efficient attention; keys and values are repeated for grouped queries. With a mask (a cache has one) PyTorch's."""
    if mask is not None:
        return torch_attention(q, k, v, mask)
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    repeat = q.shape[2] // k.shape[2]
    if repeat > 1:
        k, v = (t.repeat_interleave(repeat, dim=2) for t in (k, v))
    return memory_efficient_attention(q, k, v, attn_bias=LowerTriangularMask())


def get_kernel(name: KernelName) -> Kernel:
    """The kernel of a name. Raises ValueError where xformers is asked for and absent."""
    if name != "xformers_attn":
        return torch_attention
    if importlib.util.find_spec("xformers") is None:
        raise ValueError("--attn-name xformers_attn: xformers is not installed; pip install xformers, or use --attn-name auto")
    return xformers_attention


class Attention(nn.Module):
    """in_proj [(h + 2 h_kv) k, d], rows q, k, v; out_proj [d, h k]; no biases."""

    def __init__(self, config: ModelConfig, kernel: Kernel):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        self.positions, self.kernel = config.positional_embedding_type, kernel
        self.widths = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        self.in_proj = nn.Linear(config.hidden_dim, sum(self.widths), bias=False)
        self.out_proj = nn.Linear(self.widths[0], config.hidden_dim, bias=False)
        if self.positions in ("rotary", "head_rotary"):
            self.pos_embed = SavedFrequencies(self.head_dim, config.rope_theta)
        if config.qk_norm:
            self.q_norm = make_norm(config.model_norm, self.widths[0], config.norm_eps)
            self.k_norm = make_norm(config.model_norm, self.widths[1], config.norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, table: Table | None, mask: Tensor | None = None, past: Past | None = None) -> Tensor:
        """x: [batch, seq, d]; mask: as the kernel takes it, over the keys of `past` and of x."""
        batch, seq, _ = x.shape
        q, k, v = self.in_proj(x).split(self.widths, dim=-1)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.view(batch, seq, self.heads, self.head_dim)
        k, v = (t.view(batch, seq, self.kv_heads, self.head_dim) for t in (k, v))
        if table is not None:
            q, k = rotate(q, table, self.positions), rotate(k, table, self.positions)
        if past is not None:
            cache, layer = past
            k, v = cache.extend(layer, k.to(v.dtype), v)
        out = self.kernel(q.to(v.dtype), k.to(v.dtype), v, mask)
        return self.out_proj(out.reshape(batch, seq, self.widths[0]))
