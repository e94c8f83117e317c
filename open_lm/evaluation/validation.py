"""Loss on held-out sequences: batches of tokens -> one `ValidationResult`.

tokens: [batch, seq_len + 1] int64, negative where masked (see `open_lm.data.batch`). A masked id is no target, so a fully masked row
adds nothing to any sum. Sums are fp64 and stay on the device until the end; with torch.distributed they are added over all
processes, each of which must bring the same number of batches (a sharded model computes together).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from open_lm.data.batch import input_ids
from open_lm.evaluation.precision import Precision, autocast
from open_lm.model.head import token_losses
from open_lm.tokenizer import Tokenizer


@dataclass(frozen=True)
class ValidationResult:
    """Over all unmasked target tokens of all processes."""

    loss: float
    """Mean cross-entropy, nats per token."""
    perplexity: float
    """exp(loss)."""
    token_accuracy: float
    """Share of tokens that are the model's first choice."""
    tokens: int
    """Targets, not masked."""
    sequences: int
    """Rows with at least one such target."""
    bits_per_byte: float | None
    """Cross-entropy in bits over the bytes of the text; None where the bytes are unknown."""

    def as_dict(self) -> dict[str, Any]:
        """OpenLM's keys of `results.jsonl`, confidence bounds absent, and ours."""
        return {
            "loss": self.loss,
            "loss_sequences_lower_95": None,
            "loss_sequences_upper_95": None,
            "loss_tokens_lower_95": None,
            "loss_tokens_upper_95": None,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "perplexity": self.perplexity,
            "token_accuracy": self.token_accuracy,
            "bits_per_byte": self.bits_per_byte,
        }


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    precision: Precision = "fp32",
    bytes_per_token: float | None = None,
    tokenizer: Tokenizer | None = None,
) -> ValidationResult:
    """Run the model over `batches`; its mode (train or eval) is put back after.

    Args:
        batches: tokens [batch, seq_len + 1] int64 on any device; equally many on every process.
        precision: of the model's arithmetic; the losses themselves are fp32.
        bytes_per_token: of the data set, from its statistics; gives bits per byte.
        tokenizer: gives the bytes from the decoded targets where `bytes_per_token` is None.

    Raises:
        ValueError: no unmasked target in any batch.
    """
    device = next(model.parameters()).device
    counting = tokenizer if bytes_per_token is None else None
    was_training = model.training
    model.eval()
    try:
        sums = torch.zeros(5, dtype=torch.float64, device=device)
        for tokens in batches:
            sums += _batch_sums(model, tokens, device, precision, counting)
    finally:
        model.train(was_training)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return _result(sums.tolist(), bytes_per_token)


def _batch_sums(model: nn.Module, tokens: Tensor, device: torch.device, precision: Precision, tokenizer: Tokenizer | None) -> Tensor:
    """[5] fp64: loss in nats, targets, correct targets, rows with a target, bytes of the targets' text."""
    n_bytes = _text_bytes(tokens, tokenizer) if tokenizer else 0
    tokens = tokens.to(device, non_blocking=True)
    targets = tokens[:, 1:]

    def head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return token_losses(hidden.flatten(0, 1), weight, targets.flatten())

    with autocast(device, precision):
        losses, correct = model(input_ids(tokens[:, :-1]), head=head)
    kept = targets >= 0
    sums = (losses.double().sum(), kept.sum(), correct.sum(), kept.any(dim=1).sum())
    return torch.stack([*(value.double() for value in sums), torch.full((), n_bytes, dtype=torch.float64, device=device)])


def _text_bytes(tokens: Tensor, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the targets' text, end of text and its like not counted (statistics don't count them either)."""
    texts = (tokenizer.decode([i for i in row if i >= 0], skip_special_tokens=True) for row in tokens[:, 1:].tolist())
    return sum(len(text.encode("utf-8")) for text in texts)


def _result(sums: list[float], bytes_per_token: float | None) -> ValidationResult:
    nats, tokens, correct, sequences, n_bytes = sums
    if tokens == 0:
        raise ValueError("--val-data: no unmasked token to validate on; give at least one whole sequence to every process")
    loss = nats / tokens
    if bytes_per_token is not None:
        n_bytes = tokens * bytes_per_token
    return ValidationResult(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        token_accuracy=correct / tokens,
        tokens=int(tokens),
        sequences=int(sequences),
        bits_per_byte=nats / math.log(2) / n_bytes if n_bytes else None,
    )
