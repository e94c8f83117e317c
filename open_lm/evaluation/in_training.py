"""Validation inside a training run: a callback that `main` hands to the loop."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from open_lm.data.dataset import ValidationSet
from open_lm.data.loader import Loader, validation_shape
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.validation import validate


@dataclass(frozen=True)
class ValidationConfig:
    """How to validate: every how many epochs, rows per batch over all processes, in which arithmetic, read by how many workers."""

    every_epochs: int
    epochs: int
    global_batch_size: int
    precision: Precision
    workers: int
    rank: int = 0
    world_size: int = 1


class _Position(Protocol):
    @property
    def step(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def epoch(self) -> int: ...


class InTraining:
    """After each epoch that is due: the loss on every validation set, into the log, results.jsonl and `tell`."""

    def __init__(
        self,
        model: nn.Module,
        sets: Sequence[ValidationSet],
        config: ValidationConfig,
        folder: Path,
        model_name: str,
        tell: Callable[[Mapping[str, Any], int], None],
    ):
        self.model, self.sets, self.config, self.folder = model, sets, config, folder
        self.model_name, self.tell = model_name, tell
        self.metrics: list[dict[str, Any]] = []
        """Of the last validation, one dict per set."""

    def after_step(self, position: _Position, result: Any) -> None:
        """Nothing: validations are at epoch ends."""

    def after_epoch(self, position: _Position) -> None:
        """Validate where it is due."""
        config = self.config
        if not self.sets or (position.epoch % config.every_epochs and position.epoch != config.epochs):
            self.metrics = []
            return
        self.metrics = [self._validate_one(one, position) for one in self.sets]
        if config.rank == 0:
            with open(self.folder / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(self.metrics) + "\n")

    def _validate_one(self, one: ValidationSet, position: _Position) -> dict[str, Any]:
        config = self.config
        shape = validation_shape(one.rows.count, rank=config.rank, world_size=config.world_size, global_batch_size=config.global_batch_size)
        with Loader(one.rows, shape, config.workers) as batches:
            tokens = (batch.tokens for batch in batches)
            result = validate(self.model, tokens, precision=config.precision, bytes_per_token=one.bytes_per_token, tokenizer=one.tokenizer)
        bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits per byte"
        logging.info(
            f"Validation after epoch {position.epoch} on {one.name}: loss {result.loss:.4f}, perplexity {result.perplexity:.2f}, "
            f"token accuracy {100 * result.token_accuracy:.2f} %{bits} ({result.tokens} tokens)"
        )
        if config.rank == 0:
            self.tell(result.as_dict(), position.step)
        return {
            **result.as_dict(),
            "step": position.step,
            "train_tokens": position.tokens,
            "checkpoint_path": str(self.folder / f"epoch_{position.epoch}.pt"),
            "val_data": [one.name],
            "model": self.model_name,
        }

    def before_end(self, position: _Position, ending: Any) -> None:
        """Nothing: a run that goes on later is validated then."""

    def close(self) -> None:
        """Nothing is held."""
