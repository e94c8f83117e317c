"""Running averages of the weights, beside a model of any layout: `Averager` (one), `Averages` (all of a run), and their callbacks.

The n-th update (n from 1) of an average a by the weights w is a <- (1 - share) a + share w, with

- ema_<gamma>: share = 1 - gamma;
- poly_<eta>: share = (eta + 1) / (eta + n), polynomial-decay averaging (Shamir and Zhang 2013, arXiv:1212.1824, equation 10). The first
  update takes the weights as they are; eta 0 is the mean of all since, and a larger eta forgets the early ones: those of update n count
  as n^eta, nearly.

An average is fp32 whatever the weights' type, has their layout (whole, or this process's shards), and needs no other process. An update is
made at the steps whose number `freq` divides; a step that was skipped on the device leaves average and n as they were, decided there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from open_lm.checkpoint.run_state import AVERAGER, full_tensors
from open_lm.checkpoint.sharded import reshard
from open_lm.checkpoint.weights import clean_name, write_weights
from open_lm.params.averagers import AveragerSpec, averager_names
from open_lm.train.loop import Nothing, Position
from open_lm.train.parallel import World
from open_lm.train.saving import SavePlan
from open_lm.train.step import Step, StepResult

_GROUP_ELEMENTS = 1 << 26
"""With weights that are not fp32 an update needs memory for this many elements (256 MiB), or for the largest tensor."""


def share(spec: AveragerSpec, updates: Tensor) -> Tensor:
    """How much of the new weights the next update takes: fp64 scalar on the device.

    Args:
        updates: made before, int64 scalar on the device.
    """
    if spec.method == "ema":
        return torch.full((), 1 - spec.parameter, dtype=torch.float64, device=updates.device)
    return (spec.parameter + 1) / (spec.parameter + 1 + updates.double())


class Averager:
    """One average of some tensors, which are updated in place by others.

    Args:
        weights: by name; plain tensors or DTensors, kept by reference.
    """

    def __init__(self, spec: AveragerSpec, weights: Mapping[str, Tensor]):
        self.spec, self.weights = spec, {name: value.detach() for name, value in weights.items()}
        self.average = {name: value.to(torch.float32, copy=True) for name, value in self.weights.items()}
        self.updates = torch.zeros((), dtype=torch.int64, device=next(iter(self.weights.values())).device)
        self._groups = list(_grouped(map(_local, self.average.values()), map(_local, self.weights.values())))

    @torch.no_grad()
    def restart(self) -> None:
        """Begin from the weights as they are."""
        for average, weights in self._groups:
            torch._foreach_copy_(average, weights)
        self.updates.zero_()

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Take in the weights after a step, at the steps that are due.

        Args:
            step: number of steps made, this one included.
            skipped: bool scalar on the device: the step changed nothing and doesn't count.
        """
        if step % self.spec.freq:
            return
        taken = share(self.spec, self.updates).masked_fill(skipped, 0.0).float()
        for average, weights in self._groups:
            # one pass over the memory; with 0 and 1 it leaves the average, or takes the weights, to the bit
            torch._foreach_lerp_(average, [w.float() for w in weights], [taken] * len(weights))
        self.updates += ~skipped

    def tensors(self) -> dict[str, Tensor]:
        """What a run state keeps, by name; filled in place on resume."""
        named = {f"{AVERAGER}{self.spec.name}.{name}": value for name, value in self.average.items()}
        return {**named, f"{AVERAGER}{self.spec.name}.updates": self.updates}

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """The average where the weights are, and back after, to the bit. fp32 weights wait in the average's place, others in a copy."""
        exchanged: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            with torch.no_grad():
                for average, weight in zip(*(map(_local, d.values()) for d in (self.average, self.weights)), strict=True):
                    exchanged.append((average, weight, _exchange(average, weight)))
            yield
        finally:
            with torch.no_grad():
                for average, weight, kept in exchanged:
                    if kept is average:
                        _exchange(average, weight)
                    else:
                        weight.copy_(kept)


def _exchange(average: Tensor, weight: Tensor) -> Tensor:
    """Put the average where the weight is. Returns where the weight is now: the average's place if that holds its type, else a copy."""
    kept = weight.clone()
    weight.copy_(average)
    return average.copy_(kept) if average.dtype == weight.dtype else kept


def _local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _grouped(averages: Iterable[Tensor], weights: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Lists that belong together, of about `_GROUP_ELEMENTS` at most."""
    group: tuple[list[Tensor], list[Tensor]] = [], []
    size = 0
    for average, weight in zip(averages, weights, strict=True):
        if group[0] and size + average.numel() > _GROUP_ELEMENTS:
            yield group
            group, size = ([], []), 0
        group[0].append(average)
        group[1].append(weight)
        size += average.numel()
    yield group


def averager_changes(before: str | None, now: str | None, step: int) -> list[str]:
    """What is said where a run goes on with other --averagers than the state of `step` was made with."""
    old, new = averager_names(before), averager_names(now)
    lines = [f"--averagers {name}: new in this run; begins from the weights of step {step}" for name in new if name not in old]
    return lines + [f"--averagers: {name} is no longer asked for; its average ends at step {step}" for name in old if name not in new]


class Averages:
    """The averagers of a run, begun from a model's present weights: after it was loaded and spread over the processes."""

    def __init__(self, model: nn.Module, specs: Sequence[AveragerSpec]):
        self.model = model
        weights = {clean_name(name): parameter for name, parameter in model.named_parameters()} if specs else {}
        self.averagers = {spec.name: Averager(spec, weights) for spec in specs}

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Of all averagers, or of some: what a run state keeps."""
        wanted = self.averagers if names is None else names
        return {name: value for one in wanted for name, value in self.averagers[one].tensors().items()}

    def saved(self, text: str | None) -> list[str]:
        """Those of the averagers that a run state has, which was made with --averagers `text`."""
        return [name for name in averager_names(text) if name in self.averagers]

    def restart_unless(self, text: str | None) -> None:
        """After a resume: averagers that the state lacked begin from the weights (`averager_changes`)."""
        for name in set(self.averagers) - set(averager_names(text)):
            self.averagers[name].restart()

    @contextmanager
    def in_model(self, name: str) -> Iterator[None]:
        """The model computes with an average instead of its weights. All processes call this."""
        try:
            with self.averagers[name].in_place_of_weights():
                reshard(self.model)
                yield
        finally:
            reshard(self.model)

    @property
    def in_model_by_name(self) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        """For each averager a function that gives its `in_model`."""
        return {name: partial(self.in_model, name) for name in self.averagers}


class KeepAverages(Nothing):
    """Updates every averager after each step; before that, every `every` steps, takes the averages' loss on the step's batch.

    That loss is of the average before the step, as the step's own loss is of the weights before it.
    """

    def __init__(self, averages: Averages, step: Step, every: int):
        self.averages, self.step, self.every = averages, step, every
        self.losses: dict[str, list[Tensor]] = {}

    def after_step(self, position: Position, result: StepResult) -> None:
        """Loss where it is due, then the update."""
        if self.every and position.step % self.every == 0:
            for name in self.averages.averagers:
                with self.averages.in_model(name):
                    self.losses.setdefault(name, []).append(self.step.last_loss())
        for averager in self.averages.averagers.values():
            averager.update(position.step, result.skipped)

    def metrics(self) -> dict[str, float]:
        """`<averager>_loss`, the mean since the last call; reads the device. Nothing where no step was due."""
        losses, self.losses = self.losses, {}
        return {f"{name}_loss": float(torch.stack(values).mean()) for name, values in losses.items()}


class SaveAverages(Nothing):
    """Saves `<averager>_N.pt` in OpenLM's keys beside each `epoch_N.pt`, in the weights' type, and describes it as that does."""

    def __init__(self, folder: Path, plan: SavePlan, averages: Averages, about: Mapping[str, Any], world: World):
        self.folder, self.plan, self.averages, self.about, self.world = folder, plan, averages, about, world

    def after_epoch(self, position: Position) -> None:
        """Save at the epoch ends that are due, then remove what is not to stay."""
        if not self.plan.due(position.epoch):
            return
        for name, averager in self.averages.averagers.items():
            with self.averages.in_model(name):
                tensors = full_tensors(self.averages.model)
            if self.world.is_first:
                self._write(name, averager, tensors, position)

    def _write(self, name: str, averager: Averager, tensors: dict[str, Tensor], position: Position) -> None:
        spec, path = averager.spec, self.folder / f"{name}_{position.epoch}.pt"
        counters = {"step_counter": int(averager.updates) + 1, "update_counter": position.step % spec.freq + 1}
        parameter = {"eta": spec.parameter if spec.method == "poly" else None, "gamma": spec.parameter if spec.method == "ema" else None}
        place = {"epoch": position.epoch, "step": position.step, "tokens": position.tokens}
        about = {**self.about, **place, **counters, **parameter, "freq": spec.freq, "method": spec.method}
        write_weights(path, tensors, about, key="av_model_sd")
        logging.info(f"Saved {path}")
        for earlier in range(1, position.epoch):
            if self.plan.passing(earlier):
                (self.folder / f"{name}_{earlier}.pt").unlink(missing_ok=True)
