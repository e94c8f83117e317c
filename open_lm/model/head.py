"""The output head and the cross-entropy together, in chunks of rows: `[tokens, vocab]` logits never exist at once.

The gradient of each chunk is made in the forward pass, while its logits are at hand, so that the backward pass only scales it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_CHUNK_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits held at once: 64 MiB of fp32 on a CPU, 1 GiB on a GPU."""
_SCORED_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""The same where no gradient is wanted: on a CPU as many as its caches hold."""


class LossSums(NamedTuple):
    """Sums over the unmasked targets, fp32 scalars; and what they are sums of."""

    total: Tensor
    """Cross-entropy + z_loss * logsumexp^2; the one with a gradient."""
    cross_entropy: Tensor
    """Cross-entropy alone, in nats."""
    positions: Tensor
    """fp32, shaped as the targets: cross-entropy of each, 0 where masked. No gradient."""


def rows_per_chunk(vocab_size: int, device: torch.device) -> int:
    """Rows of logits that are held at once."""
    return max(64, _CHUNK_LOGITS.get(device.type, 1 << 24) // vocab_size)


def cross_entropy_sums(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> LossSums:
    """Summed loss of some positions.

    Args:
        hidden: [..., d].
        weight: [vocab, d].
        targets: [...] int64; negative ones are masked.
        z_loss: coefficient of the squared logsumexp (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
    """
    total, cross_entropy, positions = _ChunkedLoss.apply(hidden.flatten(0, -2), weight, targets.flatten(), z_loss)
    return LossSums(total, cross_entropy, positions.view(targets.shape))


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each position and whether its target is the most likely id. No gradient.

    Args:
        hidden: [n, d].
        weight: [vocab, d].
        targets: [n] int64; negative ones are masked: loss 0, not correct.

    Returns:
        losses [n] fp32 in nats, correct [n] bool.
    """
    losses, correct = [], []
    hidden, weight = _compute_dtype(hidden, weight)
    rows = max(1, _SCORED_LOGITS.get(hidden.device.type, 1 << 22) // weight.shape[0])
    for h, t in zip(hidden.split(rows), targets.split(rows)):
        loss, right = _losses_of(_logits(h, weight), t.clamp(min=0))
        losses.append(loss.where(t >= 0, 0.0))
        correct.append(right & (t >= 0))
    return torch.cat(losses), torch.cat(correct)


def _losses_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each target and whether it is the first of the highest logits; overwrites `logits` [rows, vocab]."""
    found, highest = logits.gather(1, targets[:, None])[:, 0], logits.amax(-1)
    right = found == highest
    tied = right.nonzero()[:, 0]  # argmax is slow on a CPU, and few rows need it
    right[tied] = logits[tied].argmax(-1) == targets[tied]
    return logits.sub_(highest[:, None]).exp_().sum(-1).log_() - (found - highest), right


def _compute_dtype(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the autocast type where autocast is on."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        return [t.to(torch.get_autocast_dtype(device)) for t in tensors]
    return [t.to(tensors[1].dtype) for t in tensors]


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return (hidden @ weight.T).float()


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
        low_hidden, low_weight = _compute_dtype(hidden, weight)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        rows = rows_per_chunk(weight.shape[0], hidden.device)
        total, cross_entropy = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.float32)
        positions = hidden.new_empty(len(targets), dtype=torch.float32)
        grad_hidden = torch.empty_like(low_hidden) if wanted else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits, kept = _logits(low_hidden[part], low_weight), targets[part] >= 0
            index = targets[part].clamp(min=0)[:, None]
            lse = torch.logsumexp(logits, dim=-1)
            nll = positions[part] = torch.where(kept, lse - logits.gather(1, index)[:, 0], 0.0)
            cross_entropy += nll.sum()
            total += nll.sum() + z_loss * torch.where(kept, lse.square(), 0.0).sum() if z_loss else nll.sum()
            if grad_hidden is not None and grad_weight is not None:
                grad = _logit_gradient(logits, lse, index, kept, z_loss).to(low_weight.dtype)
                with torch.autocast(hidden.device.type, enabled=False):
                    grad_hidden[part] = grad @ low_weight
                    if grad.dtype == torch.float32:
                        grad_weight.addmm_(grad.T, low_hidden[part])
                    else:
                        grad_weight += grad.T @ low_hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(cross_entropy, positions)
        return total, cross_entropy, positions

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (grad_hidden * grad_total).to(hidden_dtype), (grad_weight * grad_total).to(weight_dtype), None, None


def _logit_gradient(logits: Tensor, lse: Tensor, index: Tensor, kept: Tensor, z_loss: float) -> Tensor:
    """softmax * (1 + 2 z lse) - onehot(target), 0 where masked; overwrites `logits` [rows, vocab]."""
    grad = logits.sub_(lse[:, None]).exp_()
    if z_loss:
        grad.mul_(1 + 2 * z_loss * lse[:, None])
    grad.scatter_add_(1, index, grad.new_full((1, 1), -1.0).expand_as(index))
    return grad.mul_(kept[:, None])
