"""One optimizer step: micro-batches forward and backward, the loss divided by the global token count, clip, update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from open_lm.data.batch import Batch, input_ids
from open_lm.model.head import LossSums, cross_entropy_sums
from open_lm.train.endings import ASKS
from open_lm.train.optimizer import clip_gradient, set_lr, update_unless
from open_lm.train.outliers import Outliers
from open_lm.train.parallel import World, gradient_sync


@dataclass(frozen=True)
class StepConfig:
    """What a step does besides the model: parts of the batch, clipping, z-loss, autocast, sources that are told apart (0: none)."""

    accum_freq: int = 1
    grad_clip_norm: float | None = None
    z_loss: float = 0.0
    autocast: torch.dtype | None = None
    sources: int = 0


class StepResult(NamedTuple):
    """On the device, the same on every process; reading any of it is a synchronisation."""

    loss: Tensor
    """Mean loss with z-loss over the unmasked tokens of the global batch, in nats."""
    grad_norm: Tensor
    """Global norm before clipping."""
    skipped: Tensor
    """True where the step was not finite, or a spike, and nothing was updated."""
    told: Tensor
    """int64 [len(ASKS) + 1]: processes that were asked, by place in `endings.ASKS`; steps in a row that were not finite."""
    targets: Tensor
    """int64: unmasked targets of the global batch."""
    by_source: Tensor | None = None
    """fp64 [2, sources], of the rows of each source in the global batch: cross-entropy without z-loss, summed, in nats; its targets."""


class Step:
    """Callable: (batch of this process, learning rate, what this process was asked) to `StepResult`."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW, config: StepConfig, world: World, outliers: Outliers | None = None):
        self.model, self.optimizer, self.config, self.world = model, optimizer, config, world
        self.parameters, self.outliers = list(model.parameters()), outliers or Outliers(device=world.device)
        self.last: Batch | None = None

    def __call__(self, batch: Batch, lr: float, asked: Sequence[int] = ()) -> StepResult:
        """batch: on the device; with `sources` where the configuration tells some apart. asked: places in `endings.ASKS`."""
        self.last = batch
        counts = _sum_over_processes(_counts(batch, asked))
        count = counts[0].clamp(min=1)
        loss = torch.zeros((), device=batch.tokens.device)
        by_source = torch.zeros((2, self.config.sources), dtype=torch.float64, device=batch.tokens.device)
        parts = batch.chunk(self.config.accum_freq)
        for index, part in enumerate(parts):
            with gradient_sync(self.model, wanted=index == len(parts) - 1):
                sums = self._forward(part)
                # DDP and FSDP average over the processes; the sum over all tokens is wanted
                (sums.total * (self.world.size / count)).backward()
            loss += sums.total.detach()
            if self.config.sources:
                _add_by_source(by_source, part, sums.positions)
        norm = clip_gradient(self.parameters, self.config.grad_clip_norm)
        # one reduction for the loss and its parts
        summed = _sum_over_processes(torch.cat([loss.double()[None], by_source.flatten()]))
        mean = summed[0].float() / count
        skipped = self.outliers.judge(mean, norm)
        set_lr(self.optimizer, lr)
        update_unless(self.optimizer, skipped)
        self.optimizer.zero_grad(set_to_none=True)
        told = torch.cat([counts[1:], self.outliers.nonfinite[None]])
        return StepResult(mean, norm, skipped, told, counts[0], summed[1:].view_as(by_source) if self.config.sources else None)

    @torch.no_grad()
    def last_loss(self) -> Tensor:
        """The loss, as in `StepResult`, of what the model's weights are now on the batch of the last step."""
        assert self.last is not None, "no step was made yet"
        total = torch.stack([self._forward(part).total for part in self.last.chunk(self.config.accum_freq)]).sum()
        return _sum_over_processes(total) / _sum_over_processes(_counts(self.last))[0].clamp(min=1)

    def _forward(self, part: Batch) -> LossSums:
        inputs, targets = input_ids(part.tokens[:, :-1]), part.tokens[:, 1:]
        dtype = self.config.autocast

        def head(hidden: Tensor, weight: Tensor) -> LossSums:
            return cross_entropy_sums(hidden, weight, targets, self.config.z_loss)

        with torch.autocast(inputs.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return self.model(inputs, head=head, document_ids=part.document_ids)


def _counts(batch: Batch, asked: Sequence[int] = ()) -> Tensor:
    """int64 [1 + len(ASKS)], on the device: unmasked targets of this process; 1 at the place of what it was asked."""
    counts = torch.zeros(1 + len(ASKS), dtype=torch.int64, device=batch.tokens.device)
    counts[0] = (batch.tokens[:, 1:] >= 0).sum()
    for place in asked:
        counts[1 + place] = 1
    return counts


def _add_by_source(by_source: Tensor, part: Batch, positions: Tensor) -> None:
    """Add the losses [batch, seq_len] and targets of some rows to their sources' sums [2, sources], on the device."""
    assert part.sources is not None, "the loader was not asked for sources"
    rows = torch.stack([positions.double().sum(1), (part.tokens[:, 1:] >= 0).sum(1)])
    by_source.scatter_add_(1, part.sources.expand(2, -1), rows)


def _sum_over_processes(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
    return value
