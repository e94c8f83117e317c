"""OpenLM's own checkpoints give OpenLM's own logits and loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from open_lm import load_model
from open_lm.model.head import cross_entropy_sums


@pytest.mark.parametrize("variant", ["default", "gelu_tied", "head_rotary", "qk_gainlp"])
def test_logits_and_loss_equal_openlms(shared: Path, variant: str) -> None:
    folder = shared / "data/golden/models" / variant
    model, tokenizer = load_model(folder / "epoch_1.pt", str(folder / "model_config.json"))
    expected = np.load(folder / "expected.npz")
    ids = torch.from_numpy(expected["input_ids"])
    with torch.no_grad():
        logits = model(ids)
        sums = model(ids[:, :-1], head=lambda hidden, weight: cross_entropy_sums(hidden, weight, ids[:, 1:]))
    assert tokenizer is None
    assert logits.dtype == torch.float32
    assert logits.shape == (3, 96, 384)
    assert (logits - torch.from_numpy(expected["logits"])).abs().max() < 1e-4
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - expected["loss"].item()) < 1e-5
    assert abs(sums.total.item() / ids[:, 1:].numel() - expected["loss"].item()) < 1e-5
