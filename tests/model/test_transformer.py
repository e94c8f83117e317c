"""The model against plain formulas: positions, norms, heads, checkpointing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from open_lm.model.config import ModelConfig
from open_lm.model.norms import make_norm
from open_lm.model.rotary import rotary_table, rotate
from open_lm.model.transformer import Transformer


def tiny(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    values: dict[str, Any] = {"hidden_dim": 16, "n_layers": 2, "n_heads": 4, "seq_len": 12, "vocab_size": 40, **changes}
    model = Transformer(ModelConfig(**values))
    model.init_weights()
    return model


IDS = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("positions", ["rotary", "head_rotary", "llama_rotary", "none"])
@pytest.mark.parametrize("ffn", ["swiglu", "gelu", "gemma_geglu"])
def test_a_later_token_never_changes_an_earlier_logit(positions: str, ffn: str) -> None:
    model = tiny(positional_embedding_type=positions, ffn_type=ffn)
    changed = IDS.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 40
    with torch.no_grad():
        assert torch.equal(model(IDS)[:, :7], model(changed)[:, :7])
        assert not torch.equal(model(IDS)[:, 7:], model(changed)[:, 7:])


def test_rotary_depends_on_distance_only_and_head_rotary_on_the_head() -> None:
    q, k = torch.randn(1, 10, 2, 8), torch.randn(1, 10, 2, 8)
    q, k = q[:, :1].expand_as(q), k[:, :1].expand_as(k)
    for kind in ("rotary", "llama_rotary"):
        table = rotary_table(torch.arange(10), 8, 10_000.0)
        scores = torch.einsum("bqhk,bshk->bhqs", rotate(q, table, kind), rotate(k, table, kind))
        assert torch.allclose(scores[0, 0, 5, 3], scores[0, 0, 9, 7], atol=1e-5)
        assert not torch.allclose(scores[0, 0, 5, 3], scores[0, 0, 5, 4], atol=1e-5)
    turned = rotate(q, rotary_table(torch.arange(2), 8, 10_000.0), "head_rotary")
    assert torch.equal(turned[:, 0], turned[:, 9])
    assert torch.equal(turned[:, :, 0], q[:, :, 0])


def test_rotary_frequencies_stay_fp32_in_a_bf16_model() -> None:
    """compat.md 6 (25)."""
    model = tiny().to(torch.bfloat16)
    table = model._table(torch.arange(IDS.shape[1]))
    assert table is not None
    assert table[0].dtype == torch.float32
    expected = math.cos(11 * 10_000 ** (-2 / 4))
    assert abs(float(table[0][11, 1]) - expected) < 1e-6


def test_grouped_queries_equal_repeated_heads() -> None:
    grouped, full = tiny(n_kv_heads=2), tiny()
    full.load_state_dict({n: p for n, p in grouped.state_dict().items() if "in_proj" not in n}, strict=False)
    for small, large in zip(grouped.layers, full.layers):
        q, k, v = small.attention.in_proj.weight.split([16, 8, 8])
        repeated = [w.view(2, 4, 16).repeat_interleave(2, 0).reshape(16, 16) for w in (k, v)]
        large.attention.in_proj.weight.data = torch.cat([q, *repeated])
    with torch.no_grad():
        assert torch.allclose(grouped(IDS), full(IDS), atol=1e-5)


def test_rope_theta_and_norm_eps_reach_the_logits() -> None:
    with torch.no_grad():
        base = tiny()(IDS)
        assert not torch.allclose(base, tiny(rope_theta=100.0)(IDS), atol=1e-4)
        assert not torch.allclose(base, tiny(norm_eps=0.5)(IDS), atol=1e-4)


def test_grad_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for on in (False, True):
        model = tiny()
        model.grad_checkpointing = on
        model(IDS).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


@pytest.mark.parametrize("kind", ["default_layer_norm", "gain_only_layer_norm", "no_wb_layer_norm", "lp_layer_norm", "rms_norm"])
def test_norms_equal_their_formulas(kind: Any) -> None:
    norm, x = make_norm(kind, 16, 1e-5), torch.randn(3, 16)
    centred = x if kind == "rms_norm" else x - x.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(norm(x), expected, atol=1e-5)
    names = {n for n, _ in norm.named_parameters()}
    assert names == {"no_wb_layer_norm": set(), "default_layer_norm": {"weight", "bias"}, "lp_layer_norm": {"weight", "bias"}}.get(
        kind, {"weight"}
    )


def test_low_precision_norms_compute_in_the_autocast_type() -> None:
    x = torch.randn(3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make_norm("gain_only_lp_layer_norm", 16, 1e-5)(x).dtype == torch.bfloat16
        assert make_norm("gain_only_layer_norm", 16, 1e-5)(x).dtype == torch.float32


def test_initial_weights_have_their_documented_spread() -> None:
    model = tiny(hidden_dim=128, vocab_size=2000, n_heads=4)
    last = model.layers[1]
    for weight, std in (
        (model.output.weight, 128**-0.5),
        (model.tok_embeddings.weight, 128**-0.5),
        (last.attention.in_proj.weight, 128**-0.5),
        (last.attention.out_proj.weight, 128**-0.5 / 2),
        (last.feed_forward.w12.weight, 128**-0.5),
        (last.feed_forward.w3.weight, model.config.ffn_dim**-0.5 / 2),
    ):
        assert abs(weight.std().item() / (0.9866 * std) - 1) < 0.05  # a normal cut at 3 std has 0.9866 of its std
        assert weight.abs().max() <= 3 * std


def test_tied_weights_are_one_tensor_under_two_names() -> None:
    model = tiny(weight_tying=True)
    assert model.state_dict()["output.weight"].data_ptr() == model.state_dict()["tok_embeddings.weight"].data_ptr()
    assert F.linear(model.hidden_states(IDS), model.tok_embeddings.weight).allclose(model(IDS))
