"""Confidence bounds of a validation loss by the bootstrap, with OpenLM's meaning: losses of points -> the bounds of their mean.

A point is a sequence (its mean loss over unmasked targets) or an unmasked target. A resample draws as many points as there are, or at most
`max_population`, with replacement; the bounds are the 2.5th and 97.5th percentile of the means of `iterations` resamples. Points are
sorted before the draws, which have a seed of their own: how the rows were batched and spread over processes doesn't matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_DRAWS = 1 << 22
"""Draws that are held at once."""


@dataclass(frozen=True)
class IntervalOptions:
    """Which bounds to compute, and how."""

    sequences: bool = False
    tokens: bool = False
    max_population: int | None = None
    """Most points of a resample; fewer than there are make wider bounds."""
    iterations: int = 10_000


NO_INTERVALS = IntervalOptions()


class LossPoints:
    """Gathers the points of this process while it validates; nothing is kept that is not asked for."""

    def __init__(self, options: IntervalOptions):
        self.options = options
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
        """The bounds over the sequences of all processes; on the first one, None on the others. All must ask."""
        return self._interval(self._sequences) if self.options.sequences else None

    def token_interval(self) -> tuple[float, float] | None:
        """The same over tokens."""
        return self._interval(self._tokens) if self.options.tokens else None

    def _interval(self, batches: list[Tensor]) -> tuple[float, float] | None:
        points = _on_first(torch.cat(batches))
        return None if points is None else bootstrap_interval(points, self.options.max_population, self.options.iterations)


def _on_first(mine: Tensor) -> Tensor | None:
    """The points of all processes, on the first."""
    if not dist.is_available() or not dist.is_initialized():
        return mine
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=mine.device)
    sizes[dist.get_rank()] = len(mine)
    dist.all_reduce(sizes)
    longest = int(sizes.max())
    padded = torch.zeros(longest, dtype=mine.dtype, device=mine.device)
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in sizes] if dist.get_rank() == 0 else None
    dist.gather(padded, parts)
    return None if parts is None else torch.cat([part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)])


def bootstrap_interval(points: Tensor, max_population: int | None = None, iterations: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % bounds of the mean of `points` [n], n at least 1; draws happen on their device."""
    n = len(points)
    size = n if max_population is None else min(n, max_population)
    points = points.double().sort().values
    generator = torch.Generator(points.device).manual_seed(seed)
    means = torch.zeros(iterations, dtype=torch.float64, device=points.device)
    rows, columns = max(1, _DRAWS // size), min(size, _DRAWS)
    for first in range(0, iterations, rows):
        part = means[first : first + rows]
        for done in range(0, size, columns):
            shape = (len(part), min(columns, size - done))
            part += points[torch.randint(n, shape, generator=generator, device=points.device)].sum(dim=1)
    lower, upper = torch.quantile(means / size, torch.tensor([0.025, 0.975], dtype=torch.float64, device=points.device)).tolist()
    return lower, upper
