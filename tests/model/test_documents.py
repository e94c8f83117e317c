"""Attention inside documents: a packed row is its documents, each as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from open_lm.model.attention import document_mask
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer

LENGTHS = (5, 1, 9, 5)
DOCUMENTS = torch.arange(4).repeat_interleave(torch.tensor(LENGTHS))[None]
IDS = torch.randint(0, 40, (1, 20), generator=torch.Generator().manual_seed(1))


def tiny(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    values: dict[str, Any] = {"hidden_dim": 32, "n_layers": 3, "n_heads": 4, "seq_len": 20, "vocab_size": 40, **changes}
    model = Transformer(ModelConfig(**values))
    model.init_weights()
    return model


def test_the_mask_is_causal_inside_documents() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]))
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(mask[1, 0], torch.ones(4, 4, dtype=torch.bool).tril())


@pytest.mark.parametrize(
    "changes",
    [
        *({"positional_embedding_type": kind} for kind in ("rotary", "head_rotary", "llama_rotary", "none")),
        {"qk_norm": True},
        {"n_kv_heads": 2},
    ],
)
def test_logits_of_a_packed_row_are_those_of_its_documents_alone(changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    with torch.no_grad():
        packed = model(IDS, document_ids=DOCUMENTS)
        alone = torch.cat([model(part) for part in IDS.split(LENGTHS, dim=1)], dim=1)
        assert torch.allclose(packed, alone, atol=1e-5)
        assert not torch.allclose(model(IDS), alone, atol=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_packed_row_are_the_sum_of_its_documents(checkpointing: bool) -> None:
    targets = IDS.roll(-1, dims=1)
    gradients = []
    for packed in (True, False):
        model = tiny()
        model.grad_checkpointing = checkpointing
        pieces = [(IDS, targets, DOCUMENTS)] if packed else [(i, t, None) for i, t in zip(IDS.split(LENGTHS, 1), targets.split(LENGTHS, 1))]
        for ids, wanted, documents in pieces:
            F.cross_entropy(model(ids, document_ids=documents).flatten(0, 1), wanted.flatten(), reduction="sum").backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(*gradients))


def test_a_document_sees_nothing_of_another_one() -> None:
    model, changed = tiny(), IDS.clone()
    changed[:, 6:15] = (changed[:, 6:15] + 1) % 40
    rest = [*range(6), *range(15, 20)]
    with torch.no_grad():
        assert torch.equal(model(IDS, document_ids=DOCUMENTS)[:, rest], model(changed, document_ids=DOCUMENTS)[:, rest])


def test_one_document_is_plain_causal_attention() -> None:
    model = tiny()
    with torch.no_grad():
        assert torch.allclose(model(IDS, document_ids=torch.zeros_like(IDS)), model(IDS), atol=1e-6)
