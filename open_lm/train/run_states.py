"""Saves a run's run states: by steps, by the clock, at epoch ends and when told; removes those that need not stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from open_lm.checkpoint.run_state import RunState, state_tensors
from open_lm.checkpoint.state_folder import remove_leftovers, remove_run_state, run_states, step_of
from open_lm.checkpoint.state_writer import SaveError, StateWriter
from open_lm.train.agreement import Agreement
from open_lm.train.endings import Ending
from open_lm.train.loop import Nothing, Position
from open_lm.train.parallel import World
from open_lm.train.saving import SavePlan
from open_lm.train.step import StepResult


class RunStates(Nothing):
    """Saves `step_<n>` folders beside training. A save that fails ends the run on all processes at the same step.

    Args:
        folder: local or a URL.
        describe: the plain values of a run state.
        asynchronous: train on while a run state is written.
        extra: more tensors of the run, by name.
    """

    def __init__(
        self,
        folder: str,
        plan: SavePlan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        describe: Callable[[Position], RunState],
        world: World,
        asynchronous: bool = True,
        extra: Callable[[], Mapping[str, Tensor]] = dict,
    ):
        self.folder, self.plan, self.describe, self.extra = folder, plan, describe, extra
        self.model, self.optimizer, self.world = model, optimizer, world
        if world.is_first:
            remove_leftovers(folder)
        self._writer = StateWriter(folder, asynchronous, self._remove_superseded)
        self._agreement = Agreement(2) if asynchronous or plan.every_minutes else None
        self._saved_step, self._saved_at = -1, time.monotonic()
        self._passing: set[int] = set()
        self._staying: set[int] = set()

    def after_step(self, position: Position, result: StepResult) -> None:
        """Save at every --save-every-steps and when --save-every-minutes have passed on the first process's clock."""
        late = False
        if self._agreement:
            failed, late = self._agreement(self._writer.error is not None, self._late())
            late = late and position.step > self._saved_step + 1  # what was said in the step of a save is not heard again
            if failed:
                raise SaveError(self._writer.error or "a run state was not saved; another process says why")
        if late or (self.plan.every_steps and position.step % self.plan.every_steps == 0):
            self.save(position)

    def after_epoch(self, position: Position) -> None:
        """Save at the epoch ends that are due."""
        if self.plan.due(position.epoch):
            fresh = position.step != self._saved_step
            self.save(position)
            if fresh and not self.plan.regular(position.epoch):
                self._passing = self._passing | {position.step}  # the writing thread may read the old one

    def before_end(self, position: Position, ending: Ending) -> None:
        """Save where that is sound, and see it whole."""
        if ending.saves:
            self.save(position, wait=True)

    def save(self, position: Position, wait: bool = False) -> None:
        """Save now; every process calls this at the same step.

        Args:
            wait: return when the run state is whole.

        Raises:
            SaveError: it is waited for and fails, or the one before has failed.
        """
        if position.step != self._saved_step:
            tensors = state_tensors(self.model, self.optimizer, self.extra())
            self._writer.save(tensors, self.describe(position), wait)
            self._saved_step, self._saved_at = position.step, time.monotonic()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until the last run state is whole. Raises SaveError."""
        self._writer.wait()

    def close(self) -> None:
        """Leave a save under way to itself; after an exception on some process it may never end."""
        self._writer.close()

    def _late(self) -> bool:
        return self.world.is_first and self.plan.every_minutes > 0 and time.monotonic() - self._saved_at >= 60 * self.plan.every_minutes

    def _remove_superseded(self, saved: str) -> None:
        """On the first process, in the thread that wrote: what the new run state makes superfluous."""
        there = {step_of(state): state for state in run_states(self.folder)}
        for step in self.plan.superseded(there, step_of(saved), self._passing):
            if not (foreign := remove_run_state(there[step])):
                logging.info(f"Deleted {there[step]}")
            elif step not in self._staying:
                logging.warning(f"{there[step]}: stays, since {', '.join(foreign[:3])} in it was not written by a run")
                self._staying.add(step)
