"""Which steps update nothing: those that are not finite, and with --skip-spikes those far above the steps before them.

Everything stays on the device, the same on every process, and belongs to the run state: a resumed run leaves out the same steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 128
"""Steps that a spike is measured against; nothing is a spike before half of them were made."""


class Outliers:
    """The last losses and gradient norms, and the judgement of a step.

    Args:
        factor: standard deviations above the mean that make a spike; None for none.
        device: of the loss and the norm.

    Attributes:
        window: fp32 [2, WINDOW], the last losses and norms as a ring.
        seen: int64 [], finite steps that went into it.
        nonfinite: int64 [], steps in a row, up to the last one, that were not finite.
    """

    def __init__(self, factor: float | None = None, device: torch.device | None = None):
        self.factor = factor
        self.window = torch.zeros(2, WINDOW, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """What goes into a run state, by name."""
        return {"outliers.window": self.window, "outliers.seen": self.seen, "outliers.nonfinite": self.nonfinite}

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Take a step into account. Returns whether it is to be left out: bool [], on the device."""
        values = torch.stack([loss.float(), norm.float()])
        finite = values.isfinite().all()
        self.nonfinite.copy_(torch.where(finite, 0, self.nonfinite + 1))
        if self.factor is None:
            return ~finite
        limit = self._limit()
        spike = finite & (values > limit).any()
        # a spike enters as the limit that it broke: one can't hide the next, and a lasting change of level is followed in some steps
        place = (self.seen % WINDOW)[None]
        entry = torch.where(finite, values.minimum(limit), self.window.index_select(1, place)[:, 0])
        self.window.index_copy_(1, place, entry[:, None])
        self.seen += finite
        return ~finite | spike

    def _limit(self) -> Tensor:
        """fp32 [2]: above which loss and norm are spikes; infinite while too few steps are known."""
        assert self.factor is not None
        count = self.seen.clamp(max=WINDOW)
        known = torch.arange(WINDOW, device=self.window.device) < count
        mean = (self.window * known).sum(1) / count.clamp(min=1)
        variance = ((self.window - mean[:, None]).square() * known).sum(1) / (count - 1).clamp(min=1)
        deviation = variance.sqrt().maximum(1e-3 * mean.abs())  # losses that are all but equal are no measure
        return torch.where(count >= WINDOW // 2, mean + self.factor * deviation, torch.inf)
