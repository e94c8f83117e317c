"""Keys and values kept: what is read in parts gives the logits of what is read at once."""

from __future__ import annotations

import pytest
import torch

from open_lm.model.attention import xformers_attention
from open_lm.model.cache import KeyValueCache
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer

POSITIONS = ("rotary", "llama_rotary", "head_rotary", "none")


def small(positions: str = "rotary", **more: object) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(hidden_dim=32, n_layers=2, n_heads=4, seq_len=32, vocab_size=50, positional_embedding_type=positions, **more)  # type: ignore[arg-type]
    )
    model.init_weights()
    return model.eval()


IDS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() < 1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_rows_of_unequal_length_go_on_where_they_were(positions: str) -> None:
    model, cache = small(positions, qk_norm=True), KeyValueCache()
    whole = model(IDS)
    cache.real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    first = model(IDS[:, :6], cache=cache)
    second = model(torch.stack((IDS[0, 6:9], IDS[1, 4:7])), cache=cache)
    third = model(torch.stack((IDS[0, 9:10], IDS[1, 7:8])), cache=cache)
    assert near(first[0], whole[0, :6]) and near(first[1, :4], whole[1, :4])
    assert near(second[0], whole[0, 6:9]) and near(second[1], whole[1, 4:7])
    assert near(third[0], whole[0, 9:10]) and near(third[1], whole[1, 7:8])


@torch.no_grad()
def test_branches_start_from_any_row_and_leave_the_cache_as_it_is() -> None:
    model, cache = small(n_kv_heads=2), KeyValueCache()
    whole = model(IDS)
    model(IDS[:, :5], cache=cache)
    for _ in range(2):
        found = model(torch.stack((IDS[1, 5:8], IDS[0, 5:8], IDS[1, 5:8])), cache=cache.branches(torch.tensor([1, 0, 1])))
        assert near(found, whole[[1, 0, 1], 5:8])


@torch.no_grad()
def test_rows_can_be_dropped() -> None:
    model, cache = small(), KeyValueCache()
    model(IDS[:, :5], cache=cache)
    cache.keep_rows(torch.tensor([1]))
    assert near(model(IDS[1:, 5:7], cache=cache), model(IDS)[1:, 5:7])


@torch.no_grad()
def test_xformers_kernel_leaves_masked_passes_to_torch() -> None:
    model, expected = small(), small()
    caches = KeyValueCache(), KeyValueCache()
    for one, cache in zip((model, expected), caches, strict=True):
        one(IDS[:, :5], cache=cache)
    for block in model.layers:
        block.attention.kernel = xformers_attention
    assert torch.equal(model(IDS[:, 5:7], cache=caches[0]), expected(IDS[:, 5:7], cache=caches[1]))
