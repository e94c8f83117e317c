"""When a run saves what: run states by steps and at epoch ends, weights (`epoch_N.pt`) at epoch ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from open_lm.checkpoint.run_state import RunState, delete_run_states, full_tensors, save_run_state, state_tensors
from open_lm.checkpoint.weights import write_weights
from open_lm.params import CheckpointParams
from open_lm.train.endings import Ending
from open_lm.train.loop import Nothing, Position
from open_lm.train.parallel import World
from open_lm.train.step import StepResult


@dataclass(frozen=True)
class SavePlan:
    """Which steps and epochs are saved."""

    every_steps: int
    every_epochs: int
    most_recent: bool
    delete_previous: bool
    epochs: int

    @classmethod
    def of(cls, params: CheckpointParams, epochs: int) -> SavePlan:
        """From the flags and the run's number of epochs."""
        previous = params.delete_previous_checkpoint
        return cls(params.save_every_steps, params.save_frequency, params.save_most_recent, previous, epochs)

    def regular(self, epoch: int) -> bool:
        """Whether the end of this epoch is saved to stay."""
        return epoch == self.epochs or (self.every_epochs > 0 and epoch % self.every_epochs == 0)

    def due(self, epoch: int) -> bool:
        """Whether the end of this epoch is saved at all."""
        return self.most_recent or self.regular(epoch)


class RunStates(Nothing):
    """Saves `step_<n>` folders."""

    def __init__(
        self,
        folder: Path,
        plan: SavePlan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        describe: Callable[[Position], RunState],
        world: World,
        extra: Mapping[str, Tensor],
    ):
        self.folder, self.plan, self.describe, self.world = folder, plan, describe, world
        self.model, self.optimizer, self.extra = model, optimizer, extra
        self.saved_step = -1

    def after_step(self, position: Position, result: StepResult) -> None:
        """Save at every --save-every-steps."""
        if self.plan.every_steps and position.step % self.plan.every_steps == 0:
            self._save(position)

    def after_epoch(self, position: Position) -> None:
        """Save at the epoch ends that are due."""
        if self.plan.due(position.epoch):
            self._save(position)

    def before_end(self, position: Position, ending: Ending) -> None:
        """Save where that is sound."""
        if ending.saves:
            self._save(position)

    def _save(self, position: Position) -> None:
        if position.step == self.saved_step:
            return
        saved = save_run_state(self.folder, state_tensors(self.model, self.optimizer, self.extra), self.describe(position))
        self.saved_step = position.step
        logging.info(f"Saved {saved}")
        if self.world.is_first and self.plan.delete_previous:
            for gone in delete_run_states(self.folder, keep=saved):
                logging.info(f"Deleted {gone}")


class Weights(Nothing):
    """Saves `epoch_N.pt` in OpenLM's keys, with what is needed to load it anywhere: configuration, parameters, tokenizer."""

    def __init__(
        self, folder: Path, plan: SavePlan, model: nn.Module, about: Mapping[str, Any], evaluation_metrics: Callable[[], Any], world: World
    ):
        self.folder, self.plan, self.model, self.about, self.world = folder, plan, model, about, world
        self.evaluation_metrics = evaluation_metrics

    def after_epoch(self, position: Position) -> None:
        """Save at the epoch ends that are due, then remove what is not to stay."""
        if not self.plan.due(position.epoch):
            return
        tensors = full_tensors(self.model)
        if not self.world.is_first:
            return
        path = self.folder / f"epoch_{position.epoch}.pt"
        place = {"epoch": position.epoch, "step": position.step, "tokens": position.tokens, "samples_seen": position.sequences}
        write_weights(path, tensors, {**self.about, **place, "evaluation_metrics": self.evaluation_metrics()})
        logging.info(f"Saved {path}")
        for earlier in range(1, position.epoch):
            if self.plan.delete_previous or not self.plan.regular(earlier):
                (self.folder / f"epoch_{earlier}.pt").unlink(missing_ok=True)
