"""Models whose weights lie in shards over the processes (FSDP2)."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule


def reshard(model: nn.Module) -> None:
    """Let go of gathered weights: FSDP keeps some after a forward pass without a backward pass, and would compute with them again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
