"""FLOPs per token: 6 N + 12 L A S, N without an input embedding that is only looked up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from open_lm.model.config import ModelConfig
from open_lm.model.flops import flops_per_token, matmul_parameters
from open_lm.model.transformer import Transformer, count_parameters
from open_lm.model.zoo import get_model_config


def test_of_a_named_size() -> None:
    config = get_model_config("open_lm_160m")
    assert matmul_parameters(config, 162_436_608) == 162_436_608 - 50_432 * 768
    assert flops_per_token(config, 162_436_608, 2048) == 6 * 123_704_832 + 12 * 12 * 768 * 2048


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Every score, and two products a layer, that the counter sees."""
    scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1)
    return (scores @ v.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ffn", ["swiglu", "gelu"])
def test_the_formula_is_what_the_matrix_products_of_a_step_do(tied: bool, ffn: str) -> None:
    config = ModelConfig(64, 3, 4, seq_len=32, vocab_size=96, weight_tying=tied, ffn_type=ffn)  # type: ignore[arg-type]
    model = Transformer(config, plain_attention)
    model.init_weights()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros((2, 32), dtype=torch.int64)).sum().backward()
    gains = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert counter.get_total_flops() == 2 * 32 * (flops_per_token(config, count_parameters(model), 32) - 6 * gains)


def test_a_head_width_that_does_not_fill_the_model_counts_as_it_is() -> None:
    config = get_model_config("open_lm_87m")
    longer = flops_per_token(config, 10**8, 2048) - flops_per_token(config, 10**8, 1024)
    assert longer == 12 * 12 * 480 * 1024
    assert flops_per_token(replace(config, weight_tying=True), 10**8, 1) - flops_per_token(config, 10**8, 1) == 6 * 50_432 * 488
