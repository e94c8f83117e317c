"""Learning-rate schedules and the length of a run: pure functions of the step, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from open_lm.params import BatchParams, OptimizerParams
from open_lm.params.fields import Steps, counted

Schedule = Callable[[int], float]
"""Step to learning rate."""
WARMUP = 10_000
"""Most steps of warm-up where none are asked for; what OpenLM takes, however long the run."""


@dataclass(frozen=True)
class RunLength:
    """How long a run is, in the sense of OpenLM: epoch e (from 0) ends at step N(e+1)//B.

    A run whose batch size changed at step `s0`, after `g0` sequences, ends epoch e at step s0 + (N(e+1) - g0)//B: with the last whole
    batch inside the epoch's sequences, whatever the batches before it were. Its learning rate follows the sequences, not the steps:
    the schedule is that of the first batch size, read at g / B_first, so that nothing jumps where the batch size changes.
    """

    sequences_per_epoch: int
    epochs: int
    global_batch_size: int
    first_step: int = 0
    """s0, the step at which this batch size began."""
    sequences_before: int = 0
    """g0, sequences before that step, in sequences of the present length."""
    sequences_per_schedule_step: Fraction | None = None
    """B_first, the batch of the run's first step, in sequences of the present length; None while it is the present batch."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epoch_end(self.epochs - 1)

    @property
    def total_sequences(self) -> int:
        """Sequences that the run trains on."""
        return self.sequences_at(self.total_steps)

    def sequences_at(self, step: int) -> int:
        """Sequences trained on after `step` steps, from `first_step` on."""
        return self.sequences_before + (step - self.first_step) * self.global_batch_size

    def epoch_end(self, epoch: int) -> int:
        """Steps made when epoch `epoch` (from 0) is complete; `first_step` for all that ended before it."""
        return self.first_step + max(0, self.sequences_per_epoch * (epoch + 1) - self.sequences_before) // self.global_batch_size

    def epochs_done(self, step: int) -> int:
        """Epochs complete after `step` steps."""
        return min(self.epochs, (self.sequences_at(step + 1) - 1) // self.sequences_per_epoch)

    def schedule_step(self, step: int) -> float:
        """Where step `step` reads the schedule; `step` itself while the batch size is the first one."""
        if self.sequences_per_schedule_step is None:
            return step
        place = self.sequences_at(step) / self.sequences_per_schedule_step
        return int(place) if place.denominator == 1 else float(place)

    def schedule_end(self, epochs: float) -> int:
        """Steps of the schedule until so many epochs are complete."""
        return int(self.sequences_per_epoch * epochs // (self.sequences_per_schedule_step or self.global_batch_size))


def run_length(batch: BatchParams, train_num_samples: int, seq_len: int, global_batch_size: int) -> RunLength:
    """Raises ValueError for an epoch without a sequence or a run without a step."""
    sequences = train_num_samples // seq_len
    if sequences == 0:
        raise ValueError(f"--train-num-samples {train_num_samples}: less than one sequence of {seq_len} tokens; it counts tokens")
    length = RunLength(sequences, batch.epochs, global_batch_size)
    if length.total_steps == 0:
        raise ValueError(
            f"--train-num-samples {train_num_samples}: {counted(sequences, 'sequence')} x {batch.epochs} --epochs are less than one batch "
            f"of {global_batch_size}; give more tokens or epochs, or a smaller batch"
        )
    return length


def global_batch_size(batch: BatchParams, world_size: int) -> int:
    """Sequences per optimizer step: --global-batch-size, or --batch-size x processes, by default 64.

    Raises:
        ValueError: the two disagree, the processes don't divide it, or accumulation does not divide a process's share.
    """
    total = batch.global_batch_size
    if batch.batch_size is not None:
        product = batch.batch_size * world_size
        if total not in (None, product):
            raise ValueError(
                f"--batch-size {batch.batch_size} x {counted(world_size, 'process')} = {product}, but --global-batch-size is {total}; "
                "give one of them"
            )
        total = product
    total = total or 64
    if total % world_size:
        *fewer, most = [n for n in range(1, total + 1) if total % n == 0]
        allowed = ", ".join([*map(str, fewer), counted(most, "process")])
        raise ValueError(f"--global-batch-size {total}: {world_size} processes don't divide it; use {allowed}")
    if total // world_size % batch.accum_freq:
        raise ValueError(f"--accum-freq {batch.accum_freq}: must divide the {total // world_size} sequences of each process")
    return total


def warmup_steps(asked: Steps | None, length: RunLength, before: int | None = None) -> int:
    """Steps of warm-up, counted like those of the schedule.

    Args:
        asked: --warmup: steps, a share of the run, rounded up, or None for the less of `WARMUP` steps and 2 % of the run.
        before: those that a run which goes on began with; kept where none are asked for.
    """
    if isinstance(asked, int):
        return asked
    if asked is None and before is not None:
        return before
    steps = math.ceil(Fraction(asked[:-1] if asked else 2) / 100 * length.schedule_end(length.epochs))
    return steps if asked else min(WARMUP, steps)


def make_schedule(params: OptimizerParams, length: RunLength) -> Schedule:
    """The schedule that the flags ask for, by the run's steps."""
    by_place = _by_place(params, length)
    return lambda step: by_place(length.schedule_step(step))


def _by_place(params: OptimizerParams, length: RunLength) -> Callable[[float], float]:
    """The schedule by `RunLength.schedule_step`."""
    total, warm = length.schedule_end(length.epochs), warmup_steps(params.warmup, length)
    if params.skip_scheduler:
        return lambda step: params.lr
    if params.lr_scheduler == "cosine":
        return lambda step: cosine(step, params.lr, warm, total, params.lr_cooldown_end, params.force_min_lr)
    if params.lr_scheduler == "const":
        return lambda step: warmup(step, params.lr, warm)
    assert params.epochs_cooldown is not None
    start = length.schedule_end(max(0, length.epochs - params.epochs_cooldown))
    power, end = params.lr_cooldown_power, params.lr_cooldown_end
    return lambda step: const_cooldown(step, params.lr, warm, start, total, end, power)


def warmup(step: float, lr: float, warmup_steps: int) -> float:
    """lr * (s + 1) / warmup, then lr."""
    return lr * (step + 1) / warmup_steps if step < warmup_steps else lr


def cosine(step: float, lr: float, warmup_steps: int, total: int, end: float, floor: float) -> float:
    """Half a cosine from lr at the end of the warm-up to `end` at `total`, never under `floor` (Loshchilov and Hutter 2017)."""
    if step < warmup_steps:
        return warmup(step, lr, warmup_steps)
    share = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
    return max(floor, end + 0.5 * (1 + math.cos(math.pi * share)) * (lr - end))


def const_cooldown(step: float, lr: float, warmup_steps: int, start: int, total: int, end: float, power: float) -> float:
    """lr until `start`, then a polynomial down to `end` at `total` (Hagele et al. 2024, arXiv:2405.18392)."""
    if step < warmup_steps or step < start:
        return warmup(step, lr, warmup_steps)
    left = max(0.0, 1 - (step - start) / max(1, total - start))
    return end + left**power * (lr - end)
