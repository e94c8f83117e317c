"""The arithmetic of a model, in floating-point operations of its matrix products."""

from __future__ import annotations

from open_lm.model.config import ModelConfig


def matmul_parameters(config: ModelConfig, parameters: int) -> int:
    """The parameters that take part in arithmetic, N of `flops_per_token`: all but an input embedding that is only looked up.

    A tied embedding is the output head too, and counts. Gains and biases of norms are in it; they are less than a thousandth.

    Args:
        parameters: of the model, as `count_parameters` tells it.
    """
    return parameters - (0 if config.weight_tying else config.vocab_size * config.hidden_dim)


def flops_per_token(config: ModelConfig, parameters: int, seq_len: int) -> int:
    """Forward and backward of one token: 6 N + 12 L A S.

    N: `matmul_parameters`; L: layers; A: width of all heads (`hidden_dim`, but for open_lm_87m); S: the sequence length. Attention is
    counted as if it were not causal, as most published utilisations do; recomputed activations don't count.
    """
    width = config.n_heads * config.head_dim
    return 6 * matmul_parameters(config, parameters) + 12 * config.n_layers * width * seq_len
