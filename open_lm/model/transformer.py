"""The model: a decoder-only transformer with OpenLM's parameter names, read from top to bottom on this page.

ids [batch, seq] -> embedding [-> norm] -> n blocks of (x + attention(norm(x)), x + feed_forward(norm(x))) -> norm
                 -> hidden [batch, seq, d] -> output @ hidden -> fp32 logits [batch, seq, vocab]

Notable: pre-norm; rotary tables are made once a forward pass, in fp32; query/key norms run over all heads at once; the output
head may be replaced by a function of (hidden, output weight), so that a loss never holds [tokens, vocab] logits at once; attention
ends at the borders of documents where it is told of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from open_lm.model.attention import Attention, Kernel, Past, document_mask, torch_attention
from open_lm.model.cache import KeyValueCache
from open_lm.model.config import ModelConfig
from open_lm.model.feed_forward import make_feed_forward
from open_lm.model.norms import LayerNorm, RMSNorm, make_norm
from open_lm.model.rotary import SavedFrequencies, Table, rotary_table

Head = Callable[[Tensor, Tensor], Any]
"""A function of hidden [batch, seq, d] and output weight [vocab, d]."""


class Block(nn.Module):
    """One layer: [batch, seq, d] to the same."""

    def __init__(self, config: ModelConfig, kernel: Kernel):
        super().__init__()
        self.attention = Attention(config, kernel)
        self.feed_forward = make_feed_forward(config)
        if config.ffn_type == "gelu":  # OpenLM's files hold these two tensors under both names
            assert isinstance(self.feed_forward, nn.Sequential)
            self._ff_w1, self._ff_w2 = self.feed_forward[0], self.feed_forward[2]
        self.attention_norm = make_norm(config.model_norm, config.hidden_dim, config.norm_eps)
        self.ffn_norm = make_norm(config.model_norm, config.hidden_dim, config.norm_eps)

    def forward(self, x: Tensor, table: Table | None, mask: Tensor | None = None, past: Past | None = None) -> Tensor:
        """x: [batch, seq, d]; mask: of the attention, None for a causal one; past: what stands before x."""
        x = x + self.attention(self.attention_norm(x), table, mask, past)
        return x + self.feed_forward(self.ffn_norm(x))

    def init_matrices(self, index: int) -> None:
        """Draw the weights of layer `index`; see `Transformer.init_weights`."""
        depth = math.sqrt(2 * (index + 1))
        *inner, last = [m for m in self.feed_forward.modules() if isinstance(m, nn.Linear)]
        dim, hidden = last.out_features, last.in_features
        for linear in (self.attention.in_proj, *inner):
            _truncated_normal(linear.weight, 1 / math.sqrt(dim))
        _truncated_normal(self.attention.out_proj.weight, 1 / math.sqrt(dim) / depth)
        _truncated_normal(last.weight, 1 / math.sqrt(hidden) / depth)


class Transformer(nn.Module):
    """See the module. Weights are not initialised before `init_weights` or a checkpoint gives them values."""

    def __init__(self, config: ModelConfig, kernel: Kernel = torch_attention):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_dim)
        if config.post_embed_norm:
            self.post_embed_norm = make_norm(config.model_norm, config.hidden_dim, config.norm_eps)
        self.layers = nn.ModuleList(Block(config, kernel) for _ in range(config.n_layers))
        self.norm = make_norm(config.model_norm, config.hidden_dim, config.norm_eps)
        self.output = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        self._tie()
        self.grad_checkpointing = False

    def _tie(self) -> None:
        if self.config.weight_tying:
            self.tok_embeddings.weight = self.output.weight

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> Self:
        """As for any module, with tied weights still tied, which PyTorch's own parts, and with the saved frequencies filled."""
        super().to_empty(device=device, recurse=recurse)
        self._tie()
        self.init_buffers()
        return self

    def forward(
        self, input_ids: Tensor, head: Head | None = None, document_ids: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Any:
        """Logits, or whatever `head` makes of the hidden states.

        Args:
            input_ids: [batch, seq] int64, seq of any length.
            document_ids: [batch, seq] integers; a position attends to those of its row with the same one. None: the row is one document.
                Positions are counted from the start of the row; rotary ones act by their distance, so that a document gets the
                same logits, up to rounding, wherever in a row it lies.
            cache: what was read before; the ids go on from there and are added to it. Not together with `document_ids`.

        Returns:
            fp32 logits [batch, seq, vocab]; with `head`, its result.
        """
        hidden = self.hidden_states(input_ids, document_ids, cache)
        return self.output(hidden).float() if head is None else head(hidden, self.output.weight)

    def hidden_states(self, input_ids: Tensor, document_ids: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """[batch, seq] int64 to [batch, seq, d], after the final norm."""
        x = self.tok_embeddings(input_ids)
        if self.config.post_embed_norm:
            x = self.post_embed_norm(x)
        positions, mask = (torch.arange(input_ids.shape[1], device=input_ids.device), None) if cache is None else cache.begin(input_ids)
        table = self._table(positions)
        if document_ids is not None:
            mask = document_mask(document_ids)
        for index, block in enumerate(self.layers):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, table, mask, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, table, mask, None if cache is None else (cache, index))
        return self.norm(x)

    def _table(self, positions: Tensor) -> Table | None:
        config = self.config
        if config.positional_embedding_type == "none":
            return None
        if config.positional_embedding_type == "head_rotary":
            positions = torch.arange(config.n_heads, device=positions.device)
        return rotary_table(positions, config.head_dim, config.rope_theta)

    @torch.no_grad()
    def init_buffers(self) -> None:
        """Fill the saved frequencies."""
        for module in self.modules():
            if isinstance(module, SavedFrequencies):
                module.reset_parameters()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights from the global generator: truncated normals cut at 3 std, gains 1, biases 0.

        | weight | std |
        | --- | --- |
        | embeddings, output, in_proj, w12, gate, up | 1/sqrt(d) |
        | out_proj of layer i | 1/sqrt(d) / sqrt(2(i + 1)) |
        | w3, down of layer i | 1/sqrt(F) / sqrt(2(i + 1)) |
        """
        self.init_buffers()
        for module in self.modules():
            if isinstance(module, (LayerNorm, RMSNorm)):
                module.reset_parameters()
            elif isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for index, block in enumerate(self.layers):
            assert isinstance(block, Block)
            block.init_matrices(index)
        std = 1 / math.sqrt(self.config.hidden_dim)
        _truncated_normal(self.output.weight, std)
        if not self.config.weight_tying:
            _truncated_normal(self.tok_embeddings.weight, std)


def _truncated_normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)


def count_parameters(model: nn.Module) -> int:
    """Parameters, tied ones once. Source of the table of sizes."""
    return sum(p.numel() for p in model.parameters())
