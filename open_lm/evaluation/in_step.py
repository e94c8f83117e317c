"""Keeps the processes of a training run in step while they score: where one of them fails, every one raises `TaskFailed` at one place.

They tell each other how they are over a gloo group of their own, so that no message of theirs is taken for a part of the model. A sharded
model is the hard case. Its weights come together block by block while all processes compute, so each process takes part in as many passes
as the one with the most: it makes small ones for company when its share is done. A process that fails in the middle of a pass (memory
gives out) would leave the others waiting for its part. It gathers the rest of that pass with them instead, and all hear of the failure
before the next pass begins. The limit: where not even that can be gathered, the process ends with its error, and the launcher ends the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")

_PATIENCE = timedelta(hours=24)  # for processes whose shares of a task take longer; one that is gone is noticed at once


class TaskFailed(Exception):
    """A task failed on some process; all processes raise this."""


class _Nothing:
    """In the place of what failed."""


def _attempt(work: Callable[[], T]) -> tuple[T | _Nothing, str]:
    """The result, or what went wrong."""
    try:
        return work(), ""
    except TaskFailed:
        raise
    except Exception as error:  # of whatever kind: it is told, and training goes on
        return _Nothing(), f"{type(error).__name__}: {' '.join(str(error).split())}"


class InStep:
    """Every process makes one, at the same place, and calls it as the others do. `progress` is called while it waits for their shares."""

    def __init__(self, progress: Callable[[], None] = lambda: None) -> None:
        self.progress = progress
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.is_initialized() else None
        self._passes: _Passes | None = None

    def exchange(self, mine: T, problem: str = "") -> list[T]:
        """What all processes have, by rank. Raises TaskFailed on every process where any of them has a problem."""
        parts: list[Any] = [(mine, problem)]
        if self._group is not None:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, (mine, problem), group=self._group)
        problems = [f"process {rank}: {said}" if len(parts) > 1 else said for rank, (_, said) in enumerate(parts) if said]
        if problems:
            raise TaskFailed("; ".join(dict.fromkeys(problems)))
        return [one for one, _ in parts]

    def merge(self, found: Mapping[int, T]) -> dict[int, T]:
        """The findings of all processes together, when the last one has its share."""
        if self._passes:
            self._passes.keep_company()
        return {index: value for part in self.exchange(found) for index, value in part.items()}

    def checked(self, model: nn.Module, work: Callable[[], T]) -> T:
        """The result of work that calls the model, and `merge` once; TaskFailed on every process where it failed on any.

        What fails behind `merge` is the same on every process.
        """
        if isinstance(model, FSDPModule):
            return self._sharded(model, work)
        done, problem = _attempt(work)
        if problem:
            self.exchange(None, problem)
        assert not isinstance(done, _Nothing)
        return done

    def _sharded(self, model: nn.Module, work: Callable[[], T]) -> T:
        self._passes = passes = _Passes(model, self)
        try:
            with passes:
                done, problem = _attempt(work)
                if problem:
                    passes.finish()
                self.exchange(None, problem)
        except TaskFailed:
            passes.mend()
            raise
        finally:
            self._passes = None
        assert not isinstance(done, _Nothing)
        return done


class _Passes:
    """While open, all processes agree to begin each pass of the model, and this one knows how far it is in the present one."""

    def __init__(self, model: nn.Module, step: InStep):
        self.model, self.step = model, step
        self.parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
        """In the order of a pass: the model itself, then its blocks."""
        self.gathered: set[nn.Module] = set()
        self.running = self.agreed = False

    def __enter__(self) -> _Passes:
        self.hooks = [self.model.register_forward_pre_hook(self._begin, prepend=True), self.model.register_forward_hook(self._end)]
        self.hooks += [part.register_forward_pre_hook(self._entered) for part in self.parts]  # behind the one that gathers
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _begin(self, *_: Any) -> None:
        if not self.agreed:
            self.step.exchange(False)
        self.gathered.clear()
        self.running = True

    def _entered(self, part: nn.Module, _: Any) -> None:
        self.gathered.add(part)

    def _end(self, *_: Any) -> None:
        self.running = False

    def keep_company(self) -> None:
        """Small passes until all processes have their share."""
        while not all(self.step.exchange(True)):
            self.agreed = True
            try:
                self._small_pass()
            finally:
                self.agreed = False
            self.step.progress()

    def finish(self) -> None:
        """Gather with the others what is left of a pass that broke off."""
        for part in self.parts if self.running else ():
            if part not in self.gathered:
                part.unshard()

    def mend(self) -> None:
        """After a failure, on every process: blocks as between passes, and a small whole pass, which sets FSDP's own state right."""
        for part in self.parts[1:]:  # the model itself stays as it is, as it does behind a pass
            part.reshard()
        self._small_pass()

    def _small_pass(self) -> None:
        device = next(self.model.parameters()).device
        with torch.no_grad():
            self.model(torch.zeros(1, 1, dtype=torch.int64, device=device))
