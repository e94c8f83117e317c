"""How a run ends, decided by all of its processes together.

Each process says in the token-count reduction of a step what it was asked: a signal, or its time is up. The sums stay on the device with
the number of steps in a row that were not finite; they are copied to the host behind the step, and read after the next step was
launched. So every process reads the same numbers at the same step, and no device runs dry for it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from open_lm.train.guard import SIGNALS, Guard

ASKS = (*(number.name for number in SIGNALS), "time limit")
"""What a process may have been asked, by place in the reduction."""


@dataclass(frozen=True)
class Ending:
    """Why a run ended, the exit code of its processes, and whether its state is saved for that."""

    why: str
    exit_code: int = 0
    saves: bool = False


FINISHED = Ending("finished")
SIGNALLED, TIMED_OUT, NOT_FINITE = 3, 4, 5
"""Exit codes of the endings before the end."""


class _Told(NamedTuple):
    """Numbers on their way to the host, and what marks their arrival; a CPU's are there."""

    numbers: Tensor
    arrived: torch.cuda.Event | None


class Endings:
    """What this process was asked, and what all decided.

    Args:
        guard: notes the signals.
        deadline: of `time.monotonic()`, None for no time limit.
        max_nonfinite: steps in a row that may be not finite; 0 for any number.
    """

    def __init__(self, guard: Guard | None = None, deadline: float | None = None, max_nonfinite: int = 0):
        self.guard, self.deadline, self.max_nonfinite = guard, deadline, max_nonfinite
        self._told: _Told | None = None

    def asked(self) -> list[int]:
        """Places in `ASKS` of what this process was asked up to now."""
        signals = self.guard.asked if self.guard else set()
        asked = [place for place, number in enumerate(SIGNALS) if number in signals]
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return [*asked, len(SIGNALS)] if late else asked

    def beside_the_step(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Around what follows a step and is none."""
        return self.guard.beside_the_step(step) if self.guard else contextlib.nullcontext()

    def decide(self, told: Tensor) -> Ending | None:
        """The ending that the step before this one asked for.

        Args:
            told: int64 [len(ASKS) + 1] of this step, on the device: processes asked, by place; steps in a row that were not finite.
        """
        before, self._told = self._told, _send(told)
        if before is None:
            return None
        if before.arrived is not None:
            before.arrived.synchronize()  # it was recorded a step ago: the device has this step to go on with
        *asked, nonfinite = before.numbers.tolist()
        if self.max_nonfinite and nonfinite >= self.max_nonfinite:
            return Ending(f"--max-nonfinite-steps {self.max_nonfinite}: loss or gradient was not finite in so many steps", NOT_FINITE)
        for name, count in zip(ASKS, asked, strict=True):
            if count:
                return Ending(name, TIMED_OUT if name == ASKS[-1] else SIGNALLED, saves=True)
        return None


def _send(told: Tensor) -> _Told:
    """Start the copy to the host."""
    if told.device.type != "cuda":
        return _Told(told.clone(), None)
    numbers = torch.empty_like(told, device="cpu", pin_memory=True).copy_(told, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Told(numbers, arrived)
