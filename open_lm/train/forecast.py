"""The plan of a run before it starts, for --dry-run: steps, tokens, what is saved when, disk, and a drawing of the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from open_lm.params.fields import counted
from open_lm.train.loop import Position
from open_lm.train.saving import SavePlan
from open_lm.train.schedule import RunLength, Schedule

_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Size:
    """What the disk depends on: parameters of the model, tokens of a sequence, whether all is in bf16, running averages."""

    parameters: int
    seq_len: int
    pure_bf16: bool = False
    averagers: int = 0

    @property
    def weights(self) -> int:
        """Bytes of an epoch_N.pt."""
        return self.parameters * (2 if self.pure_bf16 else 4)

    @property
    def state(self) -> int:
        """Bytes of a run state: weights, two moments, and averages in fp32."""
        return 3 * self.weights + 4 * self.averagers * self.parameters

    @property
    def epoch(self) -> int:
        """Bytes of what is written at an epoch end: epoch_N.pt, and a file of each average."""
        return (1 + self.averagers) * self.weights


def lines(length: RunLength, plan: SavePlan, schedule: Schedule, start: Position, size: Size) -> list[str]:
    """The plan from `start` on, in words, and its drawing."""
    steps = length.total_steps - start.step
    begin = f" from step {start.step + 1} on" if start.step else ""
    if steps <= 0:
        return [f"The run is finished ({start.step} steps); there is nothing to do. Give more --epochs to go on"]
    per_step = length.global_batch_size * size.seq_len
    states, weights = saved_steps(length, plan, start), saved_epochs(length, plan, start)
    kept = kept_states(length, plan, start), sum(not plan.passing(epoch) for epoch in weights[:-1]) + bool(weights)
    epoch_bytes = size.epoch + (2 * size.weights if plan.openlm_optimizer else 0)
    disk = kept[0] * size.state + kept[1] * epoch_bytes
    late = f", and whenever {plan.every_minutes:g} minutes have passed since the last" if plan.every_minutes else ""
    more = " without the states of the clock" if late and not plan.keep_last else ""
    ends = [length.epoch_end(epoch) for epoch in range(start.epoch, length.epochs)]
    return [
        f"Training: {counted(steps, 'step')}{begin}, {steps * per_step:,} tokens ({per_step:,} a step), "
        f"model of {size.parameters:,} parameters",
        f"Epochs end after steps {_shortened(ends)}",
        f"Run states: {len(states)}, after steps {_shortened(states)}{late}; {_bytes(size.state)} each, {kept[0]} of these stay",
        f"Weights: {len(weights)}, after epochs {_shortened(weights)}; {_bytes(epoch_bytes)} each, {kept[1]} stay",
        f"Disk: about {_bytes(disk)} at the end{more}, and up to {_bytes(size.state + epoch_bytes)} more while it saves",
        "Learning rate:",
        *draw([schedule(step) for step in _spread(start.step, length.total_steps)], start.step + 1, length.total_steps),
    ]


def saved_steps(length: RunLength, plan: SavePlan, start: Position) -> list[int]:
    """Steps after which a run state is saved."""
    ends = {length.epoch_end(epoch - 1) for epoch in saved_epochs(length, plan, start)}
    return sorted(ends | _every_so_many(length, plan, start))


def _every_so_many(length: RunLength, plan: SavePlan, start: Position) -> set[int]:
    every = plan.every_steps
    return set(range((start.step // every + 1) * every, length.total_steps + 1, every)) if every else set()


def kept_states(length: RunLength, plan: SavePlan, start: Position) -> int:
    """Run states that are there at the end, of those saved on the way."""
    irregular = {length.epoch_end(epoch - 1) for epoch in saved_epochs(length, plan, start) if not plan.regular(epoch)}
    passing = irregular - _every_so_many(length, plan, start)
    there: list[int] = []
    for step in saved_steps(length, plan, start):
        gone = plan.superseded([*there, step], step, passing)
        there = [one for one in [*there, step] if one not in gone]
    return len(there)


def saved_epochs(length: RunLength, plan: SavePlan, start: Position) -> list[int]:
    """Epochs after which weights are saved."""
    return [epoch for epoch in range(start.epoch + 1, length.epochs + 1) if plan.due(epoch)]


def draw(values: Sequence[float], first: int, last: int, height: int = 8) -> list[str]:
    """A picture of numbers >= 0 as columns of blocks, with the largest at its side and the steps below it."""
    top = max(values)
    eighths = [round(8 * height * value / top) if top else 0 for value in values]
    rows = ["".join(_BLOCKS[min(8, max(0, e - 8 * row))] for e in eighths) for row in reversed(range(height))]
    label = f"{top:.3g}"
    below = f"{first:,}" + f"{last:,}".rjust(len(values) - len(f"{first:,}"))
    margins = [label, *[""] * (height - 2), "0"]
    return [*(f"{m.rjust(9)} |{row.rstrip()}" for m, row in zip(margins, rows, strict=True)), " " * 11 + below]


def _spread(start: int, stop: int, most: int = 64) -> list[int]:
    """Up to `most` steps from the first to the last of [start, stop)."""
    count = min(most, stop - start)
    return [start + (stop - 1 - start) * i // max(1, count - 1) for i in range(count)]


def _shortened(numbers: Sequence[int]) -> str:
    if len(numbers) <= 8:
        return ", ".join(f"{n:,}" for n in numbers) or "none"
    return ", ".join(f"{n:,}" for n in numbers[:3]) + f", ... {numbers[-1]:,}"


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
