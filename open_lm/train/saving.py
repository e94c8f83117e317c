"""When a run saves what (`run_states` saves the run states), and its weights (`epoch_N.pt`) at epoch ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from open_lm.checkpoint.run_state import full_tensors
from open_lm.checkpoint.weights import write_weights
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

    @classmethod
    def of(cls, params: CheckpointParams, epochs: int) -> SavePlan:
        """From the flags and the run's number of epochs."""
        previous = params.delete_previous_checkpoint
        last = 1 if previous else params.keep_last
        keep = params.save_every_minutes, last, params.keep_every
        return cls(params.save_every_steps, params.save_frequency, params.save_most_recent, previous, epochs, *keep)

    def regular(self, epoch: int) -> bool:
        """Whether the end of this epoch is saved to stay."""
        return epoch == self.epochs or (self.every_epochs > 0 and epoch % self.every_epochs == 0)

    def due(self, epoch: int) -> bool:
        """Whether the end of this epoch is saved at all."""
        return self.most_recent or self.regular(epoch)

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
