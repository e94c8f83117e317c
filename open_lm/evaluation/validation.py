"""Loss on held-out sequences: batches of tokens -> one `ValidationResult`.

tokens: [batch, seq_len + 1] int64, negative where masked (see `open_lm.data.batch`). A masked id is no target, so a fully masked row
adds nothing to any sum. Sums are fp64 and stay on the device until the end; with torch.distributed they are added over all
processes, each of which must bring the same number of batches (a sharded model computes together).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from open_lm.data.batch import input_ids
from open_lm.evaluation.intervals import NO_INTERVALS, IntervalOptions, LossPoints
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
    sequence_interval: tuple[float, float] | None = None
    """95 % bounds of the mean over sequences of their mean loss; None where not asked for."""
    token_interval: tuple[float, float] | None = None
    """95 % bounds of the mean loss of tokens; None as above."""

    def as_dict(self) -> dict[str, Any]:
        """OpenLM's keys of `results.jsonl`, None for bounds that were not computed, and ours."""
        sequences, tokens = self.sequence_interval or (None, None), self.token_interval or (None, None)
        return {
            "loss": self.loss,
            "loss_sequences_lower_95": sequences[0],
            "loss_sequences_upper_95": sequences[1],
            "loss_tokens_lower_95": tokens[0],
            "loss_tokens_upper_95": tokens[1],
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
    intervals: IntervalOptions = NO_INTERVALS,
    progress: Callable[[], None] = lambda: None,
) -> ValidationResult:
    """Run the model over `batches`; its mode (train or eval) is put back after.

    Args:
        batches: tokens [batch, seq_len + 1] int64 on any device; equally many on every process.
        precision: of the model's arithmetic; the losses themselves are fp32.
        bytes_per_token: of the data set, from its statistics; gives bits per byte where no token of it is masked.
        tokenizer: else gives the bytes from the decoded targets.
        intervals: which confidence bounds to compute; every process takes a part of that work.
        progress: called with each batch, and while the bounds are computed.

    Raises:
        ValueError: no unmasked target in any batch.
    """
    device = next(model.parameters()).device
    text: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        sums, points = torch.zeros(5, dtype=torch.float64, device=device), LossPoints(intervals, progress)
        for tokens in batches:
            losses, correct = _batch_losses(model, tokens, device, precision)
            sums += _batch_sums(losses, correct, tokens)
            text += [tokens[:, 1:].to("cpu", torch.int32)] if tokenizer else []
            points.add(losses, tokens[:, 1:].to(device) >= 0)
            progress()
    finally:
        model.train(was_training)
    _add_up(sums)
    if tokenizer and (bytes_per_token is None or _has_masked(sums, text)):
        bytes_per_token = None
        sums[4] = sum(_text_bytes(targets, tokenizer) for targets in text)
        _add_up(sums[4:])
    result = _result(sums.tolist(), bytes_per_token)
    return replace(result, sequence_interval=points.sequence_interval(), token_interval=points.token_interval())


def _add_up(sums: Tensor) -> None:
    """Over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)


def _has_masked(sums: Tensor, text: list[Tensor]) -> bool:
    """Whether any row with a target has masked ones too, on any process."""
    return bool(text) and float(sums[1]) != float(sums[3]) * text[0].shape[1]


def _batch_losses(model: nn.Module, tokens: Tensor, device: torch.device, precision: Precision) -> tuple[Tensor, Tensor]:
    """[batch, seq] each: loss of every target in fp32, 0 where masked; whether it is the model's first choice."""
    tokens = tokens.to(device, non_blocking=True)
    targets = tokens[:, 1:]

    def head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return token_losses(hidden.flatten(0, 1), weight, targets.flatten())

    with autocast(device, precision):
        losses, correct = model(input_ids(tokens[:, :-1]), head=head)
    return losses.view(targets.shape), correct.view(targets.shape)


def _batch_sums(losses: Tensor, correct: Tensor, tokens: Tensor) -> Tensor:
    """[5] fp64: loss in nats, targets, correct targets, rows with a target; 0 for the bytes of the targets' text."""
    kept = tokens[:, 1:].to(losses.device) >= 0
    sums = (losses.double().sum(), kept.sum(), correct.sum(), kept.any(dim=1).sum())
    return torch.stack([*(value.double() for value in sums), torch.zeros((), dtype=torch.float64, device=losses.device)])


def _text_bytes(targets: Tensor, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the targets' text, end of text and its like not counted (statistics don't count them either)."""
    texts = (tokenizer.decode([i for i in row if i >= 0], skip_special_tokens=True) for row in targets.tolist())
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
        perplexity=math.inf if loss >= 700 else math.exp(loss),
        token_accuracy=correct / tokens,
        tokens=int(tokens),
        sequences=int(sequences),
        bits_per_byte=nats / math.log(2) / n_bytes if n_bytes else None,
    )
