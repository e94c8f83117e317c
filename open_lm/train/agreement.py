"""Decisions that all processes make at the same step, although only some of them know the reason: no process waits for the device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Agreement:
    """Flags of all processes, exchanged on the hosts beside a step and read one step later.

    Every process makes one and calls it as often as the others.
    """

    def __init__(self, flags: int):
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._said = torch.zeros(flags, dtype=torch.int32)
        self._under_way: dist.Work | None = None

    def __call__(self, *flags: bool) -> list[bool]:
        """Say this process's flags; hear which ones any process said at the call before (one process hears itself at once)."""
        heard = self._hear()
        self._said = torch.tensor(flags, dtype=torch.int32)
        if self._group is None:
            return [bool(flag) for flag in flags]
        self._under_way = dist.all_reduce(self._said, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return heard.bool().tolist()

    def _hear(self) -> Tensor:
        if self._under_way is not None:
            self._under_way.wait()
        return self._said
