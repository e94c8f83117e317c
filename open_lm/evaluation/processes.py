"""The processes that score together: each takes its share of the batches, all get all results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among `count`; alone by default."""

    rank: int = 0
    count: int = 1

    def share(self, batches: Sequence[T]) -> Iterable[T]:
        """This process's batches: every `count`-th, so that batches sorted by length are spread evenly."""
        return batches[self.rank :: self.count]

    def merge(self, found: Mapping[int, T]) -> dict[int, T]:
        """The findings of all processes together; every process must call it."""
        if self.count == 1:
            return dict(found)
        import torch.distributed as dist

        parts: list[Mapping[int, T]] = [{} for _ in range(self.count)]
        dist.all_gather_object(parts, found)
        return {index: value for part in parts for index, value in part.items()}


def join_processes() -> Processes:
    """The processes that torchrun started, joined over gloo; this one alone without torchrun."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Processes(dist.get_rank(), count)


def own_device(device: str | None) -> str | None:
    """The device as named, or where none is named and there are GPUs the one of this process."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    if device is None and local is not None and torch.cuda.is_available():
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return device
