"""When a run saves what: run states by steps and at epoch ends, weights (`epoch_N.pt`) at epoch ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from open_lm.checkpoint.optimizer_file import full_moments, in_openlm_keys, write_optimizer
from open_lm.checkpoint.run_state import RunState, delete_run_states, full_tensors, save_run_state, state_tensors
from open_lm.checkpoint.weights import write_stats, write_weights
from open_lm.params import CheckpointParams
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
    openlm_optimizer: bool = False

    @classmethod
    def of(cls, params: CheckpointParams, epochs: int) -> SavePlan:
        """From the flags and the run's number of epochs."""
        previous = params.delete_previous_checkpoint
        return cls(params.save_every_steps, params.save_frequency, params.save_most_recent, previous, epochs, params.save_openlm_optimizer)

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
    ):
        self.folder, self.plan, self.describe, self.world = folder, plan, describe, world
        self.model, self.optimizer = model, optimizer
        self.saved_step = -1

    def after_step(self, position: Position, result: StepResult) -> None:
        """Save at every --save-every-steps."""
        if self.plan.every_steps and position.step % self.plan.every_steps == 0:
            self._save(position)

    def after_epoch(self, position: Position) -> None:
        """Save at the epoch ends that are due."""
        if self.plan.due(position.epoch):
            self._save(position)

    def _save(self, position: Position) -> None:
        if position.step == self.saved_step:
            return
        saved = save_run_state(self.folder, state_tensors(self.model, self.optimizer), self.describe(position))
        self.saved_step = position.step
        logging.info(f"Saved {saved}")
        if self.world.is_first and self.plan.delete_previous:
            for gone in delete_run_states(self.folder, keep=saved):
                logging.info(f"Deleted {gone}")


class Weights(Nothing):
    """Saves OpenLM's files at epoch ends, in its keys.

    `epoch_N.pt` with what is needed to load it anywhere: configuration, parameters, tokenizer; before it, with
    --save-openlm-optimizer, `optimizer_N.pt`; after it `stats_N.pt`, so that who waits for that finds the others whole.
    """

    def __init__(
        self,
        folder: Path,
        plan: SavePlan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        about: Mapping[str, Any],
        describe: Callable[[Position], RunState],
        evaluation_metrics: Callable[[], Any],
        world: World,
    ):
        self.folder, self.plan, self.model, self.about, self.world = folder, plan, model, about, world
        self.optimizer, self.describe, self.evaluation_metrics = optimizer, describe, evaluation_metrics

    def after_epoch(self, position: Position) -> None:
        """Save at the epoch ends that are due, then remove what is not to stay."""
        if not self.plan.due(position.epoch):
            return
        metrics = self.evaluation_metrics()
        shared = {"epoch": position.epoch, "name": self.about.get("name"), "evaluation_metrics": metrics}
        if self.plan.openlm_optimizer:
            self._save_optimizer(position, shared)
        tensors = full_tensors(self.model)
        if not self.world.is_first:
            return
        path = self.folder / f"epoch_{position.epoch}.pt"
        place = {"step": position.step, "tokens": position.tokens, "samples_seen": position.sequences}
        write_weights(path, tensors, {**self.about, **shared, **place})
        share = position.sequences / (position.epoch * (self.describe(position).sequences_per_epoch or 1))
        stats = {"is_final_checkpoint": position.epoch == self.plan.epochs, "percentage_of_data_seen": min(1.0, share)}
        write_stats(self.folder / f"stats_{position.epoch}.pt", {**shared, **stats, **place})
        logging.info(f"Saved {path}")
        self._delete_before(position.epoch)

    def _save_optimizer(self, position: Position, shared: Mapping[str, Any]) -> None:
        moments = full_moments(self.model, self.optimizer)
        if not self.world.is_first:
            return
        by_name = isinstance(self.model, FSDPModule)  # as OpenLM's runs of that kind write and read it
        content = {**shared, "optimizer": in_openlm_keys(moments, self.optimizer.param_groups[-1], by_name)}
        write_optimizer(self.folder / f"optimizer_{position.epoch}.pt", content, self.describe(position))

    def _delete_before(self, epoch: int) -> None:
        """What --delete-previous-checkpoint and --save-most-recent ask for, now that the new one is whole."""
        for earlier in range(1, epoch):
            if self.plan.delete_previous or (self.plan.most_recent and not self.plan.regular(earlier)):
                for name in ("stats", "epoch", "optimizer"):
                    (self.folder / f"{name}_{earlier}.pt").unlink(missing_ok=True)
