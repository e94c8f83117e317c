"""What processes decide and wait for together, on the hosts: decisions at one step whose reason only some know, and meetings."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from open_lm.train.loop import Nothing, Position

_PATIENCE = timedelta(hours=24)  # for what the first process writes or copies alone


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


class Meeting(Nothing):
    """Call it to wait for all processes; as the last callback it does so at epoch ends, where the first process writes alone.

    So none of them waits in the next step, which would look like one that can't end, and none leaves before the others. Every process
    makes one and calls it as often as the others.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.is_initialized() else None

    def __call__(self) -> None:
        """Return when all processes have called. Raises RuntimeError where one of them is gone."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def after_epoch(self, position: Position) -> None:
        """Wait for all processes."""
        self()
