"""Confidence bounds of a validation loss by the bootstrap, with OpenLM's meaning: losses of points -> the bounds of their mean.

A point is a sequence (its mean loss over unmasked targets) or an unmasked target. A resample draws as many points as there are, or at most
`max_population`, with replacement; the bounds are the 2.5th and 97.5th percentile of the means of `iterations` resamples. Points are
sorted before the draws, and every block of resamples has a seed of its own: how the rows were batched and spread over processes, which
make the blocks in turn, doesn't matter.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_DRAWS = 1 << 22
"""Draws that are held at once."""
_BLOCK = 64
"""Resamples of one seed."""


@dataclass(frozen=True)
class IntervalOptions:
    """Which bounds to compute, and how."""

    sequences: bool = False
    tokens: bool = False
    max_population: int | None = None
    """Most points of a resample; fewer than there are make wider bounds."""
    iterations: int = 10_000

    def blocks(self, processes: int) -> int:
        """Blocks of resamples that a process makes, at most."""
        return (self.sequences + self.tokens) * -(-self.iterations // (_BLOCK * processes))


NO_INTERVALS = IntervalOptions()


class LossPoints:
    """Gathers the points of this process while it validates; nothing is kept that is not asked for."""

    def __init__(self, options: IntervalOptions, progress: Callable[[], None] = lambda: None):
        self.options, self.progress = options, progress
        self._sequences: list[Tensor] = []
        self._tokens: list[Tensor] = []

    def add(self, losses: Tensor, kept: Tensor) -> None:
        """A batch.

        Args:
            losses: [batch, seq] fp32, 0 where masked.
            kept: [batch, seq] bool, False where masked; a row without any True is no point.
        """
        if self.options.sequences:
            counts = kept.sum(dim=1)
            self._sequences.append((losses.sum(dim=1) / counts)[counts > 0])
        if self.options.tokens:
            self._tokens.append(losses[kept])

    def sequence_interval(self) -> tuple[float, float] | None:
        """The bounds over the sequences of all processes, which all must ask."""
        return self._interval(self._sequences) if self.options.sequences else None

    def token_interval(self) -> tuple[float, float] | None:
        """The same over tokens."""
        return self._interval(self._tokens) if self.options.tokens else None

    def _interval(self, batches: list[Tensor]) -> tuple[float, float] | None:
        return bootstrap_interval(_of_all(torch.cat(batches)), self.options.max_population, self.options.iterations, progress=self.progress)


def _of_all(mine: Tensor) -> Tensor:
    """The points of all processes."""
    if not dist.is_available() or not dist.is_initialized():
        return mine
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=mine.device)
    sizes[dist.get_rank()] = len(mine)
    dist.all_reduce(sizes)
    padded = torch.zeros(int(sizes.max()), dtype=mine.dtype, device=mine.device)
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)])


def bootstrap_interval(
    points: Tensor,
    max_population: int | None = None,
    iterations: int = 10_000,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """95 % bounds of the mean of `points` [n], n at least 1; draws happen on their device.

    Where there are several processes, all call this with the same points, and each makes its share of the resamples.
    """
    size = len(points) if max_population is None else min(len(points), max_population)
    points = points.double().sort().values
    means = torch.zeros(iterations, dtype=torch.float64, device=points.device)
    together = dist.is_available() and dist.is_initialized()
    rank, count = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    for block in range(rank, -(-iterations // _BLOCK), count):
        _resample(points, size, means[block * _BLOCK : (block + 1) * _BLOCK], random.Random(f"{seed}/{block}").getrandbits(32))
        progress()
    if together:
        dist.all_reduce(means)  # each mean is made by one process, and 0 on the others
    lower, upper = torch.quantile(means / size, torch.tensor([0.025, 0.975], dtype=torch.float64, device=points.device)).tolist()
    return lower, upper


def _resample(points: Tensor, size: int, sums: Tensor, seed: int) -> None:
    """Add to each of `sums` [resamples] so many points."""
    generator = torch.Generator(points.device).manual_seed(seed)
    columns = max(1, _DRAWS // len(sums))
    for done in range(0, size, columns):
        shape = (len(sums), min(columns, size - done))
        sums += points[torch.randint(len(points), shape, generator=generator, device=points.device)].sum(dim=1)
