"""The training loop: batches in, steps made, callbacks told, until the batches end or all processes decide to. The rest is callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from open_lm.data.batch import Batch
from open_lm.train.endings import FINISHED, Ending, Endings
from open_lm.train.schedule import RunLength, Schedule
from open_lm.train.step import Step, StepResult


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int
    """Optimizer steps made."""
    sequences: int
    """Sequences trained on."""
    tokens: int
    """Tokens trained on."""
    epoch: int
    """Epochs complete."""
    lr: float = 0.0
    """Learning rate of the last step."""


class Callback(Protocol):
    """What a run does besides training. Every process calls every method, so collectives are allowed."""

    def after_step(self, position: Position, result: StepResult) -> None:
        """After each step; reading `result` is a synchronisation."""

    def after_epoch(self, position: Position) -> None:
        """When `position.epoch` epochs are complete."""

    def before_end(self, position: Position, ending: Ending) -> None:
        """When all processes decided to end the run here, before its end."""

    def close(self) -> None:
        """At the end, also after an exception."""


class Nothing:
    """A callback that does nothing: a base to write others from."""

    def after_step(self, position: Position, result: StepResult) -> None:
        """Nothing."""

    def after_epoch(self, position: Position) -> None:
        """Nothing."""

    def before_end(self, position: Position, ending: Ending) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def train(
    batches: Iterable[Batch],
    step: Step,
    schedule: Schedule,
    length: RunLength,
    seq_len: int,
    start: Position,
    callbacks: Sequence[Callback],
    endings: Endings,
) -> tuple[Position, Ending]:
    """Train until the batches end, or until all processes decide to end before.

    Args:
        batches: of this process, on the device, from number `start.sequences` on.

    Returns:
        Where the run ended, and why.
    """
    position = start
    for batch in batches:
        lr = schedule(position.step)
        result = step(batch, lr, endings.asked())
        before, position = position, _advance(position, length, seq_len, lr)
        ending = endings.decide(result.told) if position.step < length.total_steps else None
        with endings.beside_the_step(position.step):
            for callback in callbacks:
                callback.after_step(position, result)
            if position.epoch > before.epoch:
                for callback in callbacks:
                    callback.after_epoch(position)
            if ending:
                for callback in callbacks:
                    callback.before_end(position, ending)
        if ending:
            return position, ending
    return position, FINISHED


def _advance(position: Position, length: RunLength, seq_len: int, lr: float) -> Position:
    batch = length.global_batch_size
    done = max(position.epoch, length.epochs_done(position.step + 1))  # none is completed twice after a change of the batch size
    return replace(
        position,
        step=position.step + 1,
        sequences=position.sequences + batch,
        tokens=position.tokens + batch * seq_len,
        epoch=done,
        lr=lr,
    )
