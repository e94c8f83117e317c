"""Keeps the processes of a training run in step where one of them fails in work that all do: every one raises `TaskFailed` at one place.

A sharded model is the hard case. Its weights come together block by block while all processes compute, so a process that fails in the
middle of a pass (memory gives out) would leave the others waiting for its part. It gathers the rest of that pass with them instead, and
all hear of the failure before the next pass begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")


class TaskFailed(Exception):
    """A task failed on some process; all processes raise this."""


class _Nothing:
    """In the place of what failed."""


def exchange(mine: T, problem: str = "") -> list[T]:
    """What all processes have, by rank. Raises TaskFailed on every process where any of them has a problem."""
    parts: list[Any] = [(mine, problem)]
    if dist.is_initialized():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (mine, problem))
    problems = [f"process {rank}: {said}" if len(parts) > 1 else said for rank, (_, said) in enumerate(parts) if said]
    if problems:
        raise TaskFailed("; ".join(dict.fromkeys(problems)))
    return [one for one, _ in parts]


def _attempt(work: Callable[[], T]) -> tuple[T | _Nothing, str]:
    """The result, or what went wrong."""
    try:
        return work(), ""
    except TaskFailed:
        raise
    except Exception as error:  # of whatever kind: it is told, and training goes on
        return _Nothing(), f"{type(error).__name__}: {' '.join(str(error).split())}"


def together(work: Callable[[], T]) -> T:
    """The result of work that meets no other process, or TaskFailed on every process where it failed on any."""
    done, problem = _attempt(work)
    exchange(None, problem)
    assert not isinstance(done, _Nothing)
    return done


def checked(work: Callable[[], T]) -> T:
    """The same of work that calls `exchange` once; what fails behind that is the same on every process."""
    done, problem = _attempt(work)
    if problem:
        exchange(None, problem)
    assert not isinstance(done, _Nothing)
    return done


def alike(data: object) -> None:
    """Raises TaskFailed, on every process, where the data of one differ from those of another."""
    if len(set(exchange(hashlib.sha256(repr(data).encode()).hexdigest()))) > 1:
        raise TaskFailed("the processes read different data")


def sharded(model: nn.Module, work: Callable[[], T]) -> T:
    """The same of work that calls a sharded model, equally often on every process."""
    passes = _Passes(model)
    try:
        with passes:
            done, problem = _attempt(work)
            if problem:
                passes.finish()
            exchange(None, problem)
    except TaskFailed:
        passes.mend()
        raise
    assert not isinstance(done, _Nothing)
    return done


class _Passes:
    """While open, all processes agree to begin each pass of the model, and this one knows how far it is in the present one."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
        """In the order of a pass: the model itself, then its blocks."""
        self.gathered: set[nn.Module] = set()
        self.running = False

    def __enter__(self) -> _Passes:
        self.hooks = [self.model.register_forward_pre_hook(self._begin, prepend=True), self.model.register_forward_hook(self._end)]
        self.hooks += [part.register_forward_pre_hook(self._entered) for part in self.parts]  # behind the one that gathers
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _begin(self, *_: Any) -> None:
        exchange(None)
        self.gathered.clear()
        self.running = True

    def _entered(self, part: nn.Module, _: Any) -> None:
        self.gathered.add(part)

    def _end(self, *_: Any) -> None:
        self.running = False

    def finish(self) -> None:
        """Gather with the others what is left of a pass that broke off."""
        for part in self.parts if self.running else ():
            if part not in self.gathered:
                part.unshard()

    def mend(self) -> None:
        """After a failure, on every process: blocks as between passes, and a small whole pass, which sets FSDP's own state right."""
        for part in self.parts[1:]:  # the model itself stays as it is, as it does behind a pass
            part.reshard()
        device = next(self.model.parameters()).device
        with torch.no_grad():
            self.model(torch.zeros(1, 1, dtype=torch.int64, device=device))
