"""One optimizer step: micro-batches forward and backward, the loss divided by the global token count, clip, update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from open_lm.model.head import LossSums, cross_entropy_sums
from open_lm.train.optimizer import clip_gradient, set_lr, update_unless
from open_lm.train.parallel import World, gradient_sync


@dataclass(frozen=True)
class StepConfig:
    """What a step does besides the model: parts of the batch, clipping, z-loss, autocast."""

    accum_freq: int = 1
    grad_clip_norm: float | None = None
    z_loss: float = 0.0
    autocast: torch.dtype | None = None


class StepResult(NamedTuple):
    """Scalars on the device; reading one is a synchronisation."""

    loss: Tensor
    """Mean loss with z-loss over the unmasked tokens of the global batch, in nats."""
    grad_norm: Tensor
    """Global norm before clipping."""
    skipped: Tensor
    """True where the gradient was not finite and nothing was updated."""


class Step:
    """Callable: (tokens of this process, learning rate) to `StepResult`."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW, config: StepConfig, world: World):
        self.model, self.optimizer, self.config, self.world = model, optimizer, config, world
        self.parameters = list(model.parameters())

    def __call__(self, tokens: Tensor, lr: float) -> StepResult:
        """tokens: [local_batch, seq_len + 1] int64 on the device, negative where masked."""
        count = _sum_over_processes((tokens[:, 1:] >= 0).sum()).clamp(min=1)
        loss = torch.zeros((), device=tokens.device)
        parts = tokens.chunk(self.config.accum_freq)
        for index, part in enumerate(parts):
            with gradient_sync(self.model, wanted=index == len(parts) - 1):
                sums = self._forward(part)
                # DDP and FSDP average over the processes; the sum over all tokens is wanted
                (sums.total * (self.world.size / count)).backward()
            loss += sums.total.detach()
        norm = clip_gradient(self.parameters, self.config.grad_clip_norm)
        skipped = ~torch.isfinite(norm)
        set_lr(self.optimizer, lr)
        update_unless(self.optimizer, skipped)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(_sum_over_processes(loss) / count, norm, skipped)

    def _forward(self, tokens: Tensor) -> LossSums:
        inputs, targets = tokens[:, :-1].clamp(min=0), tokens[:, 1:]
        dtype = self.config.autocast
        with torch.autocast(tokens.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return self.model(inputs, head=lambda hidden, weight: cross_entropy_sums(hidden, weight, targets, self.config.z_loss))


def _sum_over_processes(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
    return value
