"""When a run saves what (`run_states` saves the run states), and its weights (`epoch_N.pt`) at epoch ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from open_lm.checkpoint.optimizer_file import full_moments, in_openlm_keys, write_optimizer
from open_lm.checkpoint.run_state import RunState, full_tensors
from open_lm.checkpoint.weights import write_stats, write_weights
from open_lm.params import CheckpointParams
from open_lm.train.loop import Nothing, Position
from open_lm.train.parallel import World


@dataclass(frozen=True)
class SavePlan:
    """Which steps and epochs are saved."""

    every_steps: int
    every_epochs: int
    most_recent: bool
    delete_previous: bool
    epochs: int
    every_minutes: float = 0.0
    keep_last: int = 0
    """Run states that stay, 0 for all."""
    keep_every: int = 0
    """Run states of multiples of this step stay for good, 0 for none."""
    openlm_optimizer: bool = False

    @classmethod
    def of(cls, params: CheckpointParams, epochs: int) -> SavePlan:
        """From the flags and the run's number of epochs."""
        previous = params.delete_previous_checkpoint
        last = 1 if previous else params.keep_last
        keep = params.save_every_minutes, last, params.keep_every, params.save_openlm_optimizer
        return cls(params.save_every_steps, params.save_frequency, params.save_most_recent, previous, epochs, *keep)

    def regular(self, epoch: int) -> bool:
        """Whether the end of this epoch is saved to stay."""
        return epoch == self.epochs or (self.every_epochs > 0 and epoch % self.every_epochs == 0)

    def due(self, epoch: int) -> bool:
        """Whether the end of this epoch is saved at all."""
        return self.most_recent or self.regular(epoch)

    def passing(self, epoch: int) -> bool:
        """Whether files of this epoch go when those of a later one are whole."""
        return self.delete_previous or (self.most_recent and not self.regular(epoch))

    def superseded(self, steps: Iterable[int], newest: int, passing: Iterable[int] = ()) -> list[int]:
        """The steps whose run states go when that of `newest` is whole, oldest first.

        Args:
            steps: of all run states. Those above `newest` are from before the run was taken back to an earlier step.
            passing: steps that go at the next save whatever is kept, see --save-most-recent.
        """
        older = sorted(set(steps) - {newest})
        last = self.keep_last - 1
        recent = {newest, *[s for s in older if s < newest][-last:]} if last > 0 else {newest}
        kept = recent if self.keep_last else set(older)
        stays = {s for s in older if self.keep_every and s % self.keep_every == 0}
        return [s for s in older if s not in stays and (s not in kept or s in set(passing))]


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
        metrics, state = self.evaluation_metrics(), self.describe(position)  # by all processes: it may be a collective
        shared = {"epoch": position.epoch, "name": self.about.get("name"), "evaluation_metrics": metrics}
        if self.plan.openlm_optimizer:
            self._save_optimizer(state, shared)
        tensors = full_tensors(self.model)
        if not self.world.is_first:
            return
        path = self.folder / f"epoch_{position.epoch}.pt"
        place = {"step": position.step, "tokens": position.tokens, "samples_seen": position.sequences}
        write_weights(path, tensors, {**self.about, **shared, **place})
        share = position.sequences / (position.epoch * (state.sequences_per_epoch or 1))
        stats = {"is_final_checkpoint": position.epoch == self.plan.epochs, "percentage_of_data_seen": min(1.0, share)}
        write_stats(self.folder / f"stats_{position.epoch}.pt", {**shared, **stats, **place})
        logging.info(f"Saved {path}")
        self._delete_before(position.epoch)

    def _save_optimizer(self, state: RunState, shared: Mapping[str, Any]) -> None:
        moments = full_moments(self.model, self.optimizer)
        if not self.world.is_first:
            return
        by_name = isinstance(self.model, FSDPModule)  # as OpenLM's runs of that kind write and read it
        content = {**shared, "optimizer": in_openlm_keys(moments, self.optimizer.param_groups[-1], by_name)}
        write_optimizer(self.folder / f"optimizer_{state.epoch}.pt", content, state)

    def _delete_before(self, epoch: int) -> None:
        """What --delete-previous-checkpoint and --save-most-recent ask for, now that the new one is whole."""
        for earlier in range(1, epoch):
            if self.plan.passing(earlier):
                for name in ("stats", "epoch", "optimizer"):
                    (self.folder / f"{name}_{earlier}.pt").unlink(missing_ok=True)
