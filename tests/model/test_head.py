"""The chunked loss head equals cross-entropy over whole logits, with its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from open_lm.model import head
from open_lm.model.head import cross_entropy_sums, token_losses


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk", [64, 10_000])
def test_loss_and_gradients_equal_whole_logits(z_loss: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "rows_per_chunk", lambda vocab_size, device: chunk)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 100, 8, generator=generator, requires_grad=True)
    weight = torch.randn(30, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 30, (2, 100), generator=generator)
    targets[0, 10:50] = -1

    sums = cross_entropy_sums(hidden, weight, targets, z_loss)
    (sums.total * 0.5).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    kept = targets >= 0
    cross_entropy = F.cross_entropy(logits[kept], targets[kept], reduction="sum")
    total = cross_entropy + z_loss * logits.logsumexp(-1)[kept].square().sum()
    (total * 0.5).backward()

    assert torch.allclose(sums.total, total, rtol=1e-5)
    assert torch.allclose(sums.cross_entropy, cross_entropy, rtol=1e-5)
    assert sums.positions.shape == targets.shape
    assert not sums.positions.requires_grad
    assert torch.allclose(sums.positions[kept], F.cross_entropy(logits[kept], targets[kept], reduction="none"), atol=1e-5)
    assert not sums.positions[~kept].any()
    assert torch.allclose(ours[0], hidden.grad, atol=1e-5)
    assert torch.allclose(ours[1], weight.grad, atol=1e-4)


def test_all_masked_is_zero_not_nan() -> None:
    """compat.md 6 (29)."""
    hidden, weight = torch.randn(1, 5, 8, requires_grad=True), torch.randn(30, 8)
    sums = cross_entropy_sums(hidden, weight, torch.full((1, 5), -1), 1e-3)
    sums.total.backward()
    assert sums.total == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_autocast_gives_fp32_losses_close_to_fp32_ones() -> None:
    hidden, weight, targets = torch.randn(200, 16), torch.randn(50, 16), torch.randint(0, 50, (200,))
    exact = cross_entropy_sums(hidden, weight, targets).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = cross_entropy_sums(hidden, weight, targets).total
    assert low.dtype == torch.float32
    assert abs(low / exact - 1) < 0.01
    assert low != exact


def test_token_losses_equal_cross_entropy_and_know_the_most_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_SCORED_LOGITS", {"cpu": 7 * 9})
    hidden, weight, targets = torch.randn(20, 4), torch.randn(9, 4), torch.randint(0, 9, (20,))
    targets[3] = -1
    losses, correct = token_losses(hidden, weight, targets)
    logits = hidden @ weight.T
    assert losses[3] == 0
    assert not correct[3]
    kept = targets >= 0
    assert torch.allclose(losses[kept], F.cross_entropy(logits[kept], targets[kept], reduction="none"), atol=1e-5)
    assert torch.equal(correct[kept], logits.argmax(-1)[kept] == targets[kept])


def test_of_equal_logits_the_first_is_the_most_likely() -> None:
    weight = torch.tensor([[0.0], [2.0], [1.0], [2.0]])
    losses, correct = token_losses(torch.ones(4, 1), weight, torch.arange(4))
    assert correct.tolist() == [False, True, False, False]
    assert losses[1] == losses[3] < losses[2] < losses[0]
