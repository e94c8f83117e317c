"""Requests through the model: perplexity of the continuation and whether it is the greedy one.

Requests are sorted by length and batched by padded tokens, so that little is padding; the hidden states of continuation tokens
alone go through the output head. Padding stands at the right, where causal attention keeps it from mattering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from open_lm.evaluation.icl import Request, Score
from open_lm.evaluation.precision import Precision, autocast
from open_lm.model.head import token_losses

PAD = 0


@dataclass(frozen=True)
class ScorerOptions:
    """How requests are run; none of it changes a score but the precision."""

    batch_tokens: int = 16384
    """Padded tokens of a batch; one request is always taken, however long."""
    precision: Precision = "fp32"


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of requests, longest first, in batches of at most `batch_tokens` padded tokens (or one request)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def score_requests(model: nn.Module, requests: Sequence[Request], options: ScorerOptions) -> list[Score]:
    """Scores in the order of the requests. `model` is left as it is and should be in eval mode."""
    scores: list[Score | None] = [None] * len(requests)
    for batch in plan_batches([len(request.input_ids) for request in requests], options.batch_tokens):
        for index, score in zip(batch, _score_batch(model, [requests[i] for i in batch], options.precision), strict=True):
            scores[index] = score
    return [score for score in scores if score is not None]


@torch.no_grad()
def _score_batch(model: nn.Module, requests: Sequence[Request], precision: Precision) -> list[Score]:
    device = next(model.parameters()).device
    input_ids, positions, targets, owners = (tensor.to(device) for tensor in _pack(requests))

    def head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return token_losses(hidden.flatten(0, 1)[positions], weight, targets)

    with autocast(device, precision):
        losses, correct = model(input_ids, head=head)
    zeros = torch.zeros(len(requests), dtype=torch.float32, device=device)
    counts = torch.bincount(owners, minlength=len(requests))
    perplexity = torch.exp(zeros.index_add(0, owners, losses.float()) / counts)
    wrong = zeros.index_add(0, owners, (~correct).float())
    return [Score(p, w == 0) for p, w in zip(perplexity.tolist(), wrong.tolist(), strict=True)]


def _pack(requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids [b, longest]; and for each of the n continuation tokens the flat position that predicts it, its id, its request."""
    # The last token of a request predicts nothing, so it need not be read.
    width = max(1, *(len(request.input_ids) - 1 for request in requests))
    input_ids = torch.full((len(requests), width), PAD, dtype=torch.int64)
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for row, request in enumerate(requests):
        ids = request.input_ids
        input_ids[row, : len(ids) - 1] = _int64(ids[:-1])
        positions += [row * width + place - 1 for place in range(request.start, len(ids))]
        targets += ids[request.start :]
        owners += [row] * (len(ids) - request.start)
    return input_ids, _int64(positions), _int64(targets), _int64(owners)


def _int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
