"""Validation inside a training run: a callback that `main` hands to the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from open_lm.data.dataset import ValidationSet
from open_lm.data.loader import Loader, validation_shape
from open_lm.data.source_names import source_names
from open_lm.evaluation.intervals import NO_INTERVALS, IntervalOptions
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.validation import validate
from open_lm.progress import Progress
from open_lm.storage.json_lines import add_line, drop_after


@dataclass(frozen=True)
class ValidationConfig:
    """How to validate: every how many epochs, rows per batch over all processes, arithmetic, workers that read, confidence bounds."""

    every_epochs: int
    epochs: int
    global_batch_size: int
    precision: Precision
    workers: int
    rank: int = 0
    world_size: int = 1
    intervals: IntervalOptions = NO_INTERVALS


class Place(Protocol):
    """How far a run has come."""

    @property
    def step(self) -> int: ...
    @property
    def tokens(self) -> int | None: ...
    @property
    def epoch(self) -> int: ...


@dataclass(frozen=True)
class Beside:
    """What a callback that takes long has to do with the run around it."""

    progress: Callable[[], None] = lambda: None
    """Called as it goes on, so that it doesn't look stuck."""
    asked: Callable[[], bool] = lambda: False
    """Whether this process was asked to end."""


class InTraining:
    """After each epoch that is due: the loss on every validation set, into the log, results.jsonl and `tell`; the same of each average."""

    def __init__(
        self,
        model: nn.Module,
        sets: Sequence[ValidationSet],
        config: ValidationConfig,
        folder: Path,
        model_name: str,
        tell: Callable[[Mapping[str, Any], int], None],
        averages: Mapping[str, Callable[[], AbstractContextManager[None]]] | None = None,
        start_step: int | None = 0,
        checkpoint: str | None = None,
        beside: Beside | None = None,
    ):
        """What is told, and of which weights.

        Args:
            tell: takes the numbers of one set and the step; with several sets their names begin with the set's, `<set>/loss`.
            averages: by name, what puts an average into the model's weights for a while.
            start_step: where the run goes on; what results.jsonl has of later steps is removed, since they are made again. None: nothing.
            checkpoint: what the weights are from, where that is not the epoch_N.pt of the epoch.
            beside: the run around it.
        """
        self.model, self.sets, self.config, self.folder = model, sets, config, folder
        self.model_name, self.tell, self.averages = model_name, tell, averages or {}
        self.names = dict(zip([one.name for one in sets], source_names([one.name for one in sets]), strict=True))
        self.checkpoint, self.beside = checkpoint, beside or Beside()
        self.metrics: list[dict[str, Any]] = []
        """Of the last validation of the model's own weights, one dict per set."""
        if config.rank == 0 and start_step is not None:
            drop_after(folder / "results.jsonl", start_step)

    def after_step(self, position: Place, result: Any) -> None:
        """Nothing: validations are at epoch ends."""

    def after_epoch(self, position: Place) -> None:
        """Validate where it is due."""
        config = self.config
        if not self.sets or (position.epoch % config.every_epochs and position.epoch != config.epochs):
            self.metrics = []
            return
        self.metrics = [self._validate_one(one, position) for one in self.sets]
        results = list(self.metrics)
        for name, in_model in self.averages.items():
            with in_model():
                results += [self._validate_one(one, position, name) for one in self.sets]
        if config.rank == 0:
            add_line(self.folder / "results.jsonl", results)

    def _validate_one(self, one: ValidationSet, position: Place, averager: str | None = None) -> dict[str, Any]:
        config = self.config
        shape = validation_shape(one.rows.count, rank=config.rank, world_size=config.world_size, global_batch_size=config.global_batch_size)
        total = one.batches(config.global_batch_size) + config.intervals.blocks(config.world_size)
        with Loader(one.rows, shape, config.workers) as batches, Progress(f"validation on {one.name}", total, "batches") as shown:

            def forth() -> None:
                shown.done += 1
                self.beside.progress()

            tokens = (batch.tokens for batch in batches)
            result = validate(
                self.model,
                tokens,
                precision=config.precision,
                bytes_per_token=one.bytes_per_token,
                tokenizer=one.tokenizer,
                intervals=config.intervals,
                progress=forth,
            )
        bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits per byte"
        logging.info(
            f"Validation {self._what(position, averager)} on {one.name}: "
            f"loss {result.loss:.4f}, perplexity {result.perplexity:.2f}, "
            f"token accuracy {100 * result.token_accuracy:.2f} %{bits} ({result.tokens} tokens)"
        )
        if config.rank == 0:
            prefix = (f"{averager}/" if averager else "") + (f"{self.names[one.name]}/" if len(self.sets) > 1 else "")
            self.tell({prefix + name: value for name, value in result.as_dict().items()}, position.step)
        return {
            **result.as_dict(),
            "step": position.step,
            "train_tokens": position.tokens,
            "checkpoint_path": self.checkpoint or str(self.folder / f"{averager or 'epoch'}_{position.epoch}.pt"),
            "val_data": [one.name],
            "model": self.model_name,
            **({"averager": averager} if averager else {}),
        }

    def _what(self, position: Place, averager: str | None) -> str:
        return f"of {self.checkpoint}" if self.checkpoint else f"after epoch {position.epoch}{f' of {averager}' if averager else ''}"

    def before_end(self, position: Place, ending: Any) -> None:
        """Nothing: a run that goes on later is validated then."""

    def close(self) -> None:
        """Nothing is held."""
