"""Writes run states one after another: what each process writes is planned once, and each save then needs no agreement to start.

An asynchronous save holds training up for a copy of the tensors into host memory. A thread writes the copies to this process's parts; the
first process's thread hears of all parts, writes `.metadata` and `state.json`, and tells all threads how it ended.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import IO, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.tensor import DTensor

from open_lm.checkpoint.run_state import RunState
from open_lm.checkpoint.safe_metadata import METADATA_FILE
from open_lm.checkpoint.staging import Staging
from open_lm.checkpoint.state_folder import NewState, new_state

_PATIENCE = timedelta(hours=2)  # for the slowest process's part


class SaveError(OSError):
    """A run state could not be written; the ones before it stand."""


@dataclass(frozen=True)
class _Plan:
    """Which pieces of which tensors this process writes; on the first process the description of all."""

    pieces: tuple[MetadataIndex, ...]
    metadata: Metadata | None
    attempt: str
    """Part of the names of the files: the same on all processes, another one in each start of a run."""


@dataclass
class _Parts:
    """What a process wrote."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: list[tuple[MetadataIndex, _StorageInfo]] = field(default_factory=list)


class StateWriter:
    """Writes the run states of one run, at most one at a time. Every process has one and makes the same calls.

    Args:
        folder: local or a URL.
        asynchronous: go on while a run state is written, at the price of a second copy of this process's share in host memory.
        when_whole: called on the first process, by the writing thread, with each new run state's url.
    """

    def __init__(self, folder: str, asynchronous: bool = False, when_whole: Callable[[str], None] | None = None):
        self.folder, self.asynchronous, self.when_whole = folder, asynchronous, when_whole
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        # of its own: two threads must not use one group
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.is_initialized() else None
        self._plans: dict[tuple[Any, ...], _Plan] = {}
        self._staging = Staging()
        self._thread: threading.Thread | None = None
        self._outcome: str | None = None

    @property
    def error(self) -> str | None:
        """What went wrong in a save that has ended."""
        return self._outcome if self._thread is None or not self._thread.is_alive() else None

    def save(self, tensors: Mapping[str, Tensor], state: RunState, wait: bool = False) -> None:
        """Begin to write a run state; the tensors may change when this returns.

        Args:
            wait: return when it is whole, without a copy in memory.

        Raises:
            SaveError: this save where it is waited for, or the one before.
        """
        self.wait()
        plan = self._plan_for(tensors)
        sources = [_here(tensors[piece.fqn]) for piece in plan.pieces]
        new = new_state(self.folder, state.step, plan.attempt)
        self._writing = new.url
        if wait or not self.asynchronous:
            self._work(new, plan, sources, state)
            self.wait()
            return
        copies = self._staging.copy(sources)
        self._thread = threading.Thread(target=self._work, args=(new, plan, copies, state), name="run-state", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until no save is under way. Raises SaveError where the last one failed, on every process."""
        if self._thread is not None:
            if self._thread.is_alive():
                logging.info(f"Waiting for {self._writing} to be whole")
            self._thread.join()
            self._thread = None
        if self._outcome is not None:
            raise SaveError(self._outcome)

    def close(self, seconds: float = 5.0) -> None:
        """Leave: a save under way gets a few seconds to end by itself."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return  # it still reads the copies
        self._staging.close()

    def _plan_for(self, tensors: Mapping[str, Tensor]) -> _Plan:
        key = tuple((name, tuple(value.shape), value.dtype) for name, value in tensors.items())
        if key not in self._plans:
            self._plans[key] = _make_plan(dict(tensors), self.rank, self._group)
        return self._plans[key]

    def _work(self, new: NewState, plan: _Plan, sources: Sequence[Tensor], state: RunState) -> None:
        """Write, agree on how it went, finish. Never raises: how it ended is in `_outcome`."""
        begin = time.monotonic()
        try:
            self._staging.wait()
            told: _Parts | str = _write_parts(new, plan, sources, self.rank)
        except Exception as error:
            told = f"{new.url}: not saved: process {self.rank}: {_words(error)}"
        try:
            everyone = self._gather(told)
            outcome = self._finish(new, plan, state, everyone) if self.rank == 0 else None
            self._outcome = self._from_first(outcome)
        except Exception as error:
            self._outcome = f"{new.url}: not saved: process {self.rank}: {_words(error)}"
        if self._outcome is None and self.rank == 0:
            logging.info(f"Saved {new.url} in {time.monotonic() - begin:.1f} s")

    def _finish(self, new: NewState, plan: _Plan, state: RunState, everyone: list[_Parts | str]) -> str | None:
        failures = [told for told in everyone if isinstance(told, str)]
        try:
            if not failures:
                files, metadata = _described(plan, [told for told in everyone if isinstance(told, _Parts)])
                new.publish(metadata, json.dumps({**asdict(state), "files": files}, indent=1).encode())
        except Exception as error:
            failures = [f"{new.url}: not saved: {_words(error)}"]
        try:
            if failures:
                new.abandon()
            elif self.when_whole:
                self.when_whole(new.url)
        except OSError as error:  # the run state is whole or absent all the same
            logging.warning(f"{self.folder}: what is superfluous was not removed: {error}")
        return "; ".join(failures) or None

    def _gather(self, told: _Parts | str) -> list[_Parts | str]:
        if self._group is None:
            return [told]
        everyone: list[Any] | None = [None] * dist.get_world_size() if self.rank == 0 else None
        dist.gather_object(told, everyone, dst=0, group=self._group)
        return everyone or []

    def _from_first(self, outcome: str | None) -> str | None:
        if self._group is None:
            return outcome
        box = [outcome]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


def save_run_state(folder: str, tensors: Mapping[str, Tensor], state: RunState) -> str:
    """Write `folder/step_<n>` and point `latest` at it. All processes call this. Returns the new run state."""
    StateWriter(str(folder)).save(tensors, state)
    return new_state(str(folder), state.step, "").url


def _words(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):  # torch.save tells of a full disk in words of its own
        cause = cause.__cause__ or cause.__context__
    error = cause or error
    return str(error) if isinstance(error, (OSError, ValueError)) and str(error) else repr(error)


def _here(value: Tensor) -> Tensor:
    """This process's share of a tensor."""
    return (value.to_local() if isinstance(value, DTensor) else value).detach()


def _make_plan(tensors: dict[str, Tensor], rank: int, group: dist.ProcessGroup | None) -> _Plan:
    """Share the tensors among the processes: shards stay where they are, copies are written by one process each."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(tensors, None, rank == 0)
    local, size = planner.create_local_plan(), dist.get_world_size() if group else 1
    everyone: list[Any] = [local]
    metadata, box = None, [(local, "")]
    if group:
        everyone = [None] * size
        dist.gather_object(local, everyone if rank == 0 else None, dst=0, group=group)
    shares: list[Any] | None = None
    if rank == 0:
        plans, metadata = planner.create_global_plan(everyone)
        attempt = secrets.token_hex(4)
        shares = [(plan, attempt) for plan in plans]
        box = shares[:1]
    if group:
        dist.scatter_object_list(box, shares, src=0, group=group)
    share: SavePlan = box[0][0]
    return _Plan(tuple(item.index for item in share.items), metadata, box[0][1])


class _Summed:
    """A file that adds up what is written to it: bytes, SHA-256 of all, CRC-32 since `entry`."""

    def __init__(self, file: IO[bytes]):
        self._file, self._sha256 = file, hashlib.sha256()
        self.bytes, self.sums = 0, ""
        self._start, self._crc = 0, 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._sha256.update(view)
        self._crc = zlib.crc32(view, self._crc)
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """When the part ends."""

    @contextmanager
    def entry(self, name: str, index: MetadataIndex, parts: _Parts) -> Iterator[None]:
        start, self._crc = self.bytes, 0
        yield
        parts.places.append((index, _StorageInfo(name, start, self.bytes - start)))
        self.sums += f"{self._crc:08x}"

    def about(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self._sha256.hexdigest(), "crc32": self.sums}


def _write_parts(new: NewState, plan: _Plan, sources: Sequence[Tensor], rank: int) -> _Parts:
    """Write this process's pieces, in files of at most `new.part_bytes` or one piece."""
    parts = _Parts()
    waiting = list(zip(plan.pieces, sources, strict=True))
    while waiting:
        name = f"{rank}_{len(parts.files)}-{plan.attempt}.distcp"
        with new.part(name, sum(source.nbytes for _, source in waiting)) as file:
            summed = _Summed(file)
            while waiting and (not summed.bytes or new.part_bytes is None or summed.bytes + waiting[0][1].nbytes <= new.part_bytes):
                index, source = waiting.pop(0)
                tensor = source.cpu()
                if tensor.untyped_storage().nbytes() != tensor.nbytes:
                    tensor = tensor.clone()  # torch.save writes whole storages
                with summed.entry(name, index, parts):
                    torch.save(tensor, cast("IO[bytes]", summed))
        parts.files[name] = summed.about()
    return parts


def _described(plan: _Plan, everyone: list[_Parts]) -> tuple[dict[str, Any], bytes]:
    """The files of a run state with their sizes and sums, and its .metadata."""
    assert plan.metadata is not None
    plan.metadata.storage_data = {index: place for told in everyone for index, place in told.places}
    metadata = pickle.dumps(plan.metadata)
    files = {name: about for told in everyone for name, about in told.files.items()}
    files[METADATA_FILE] = {"bytes": len(metadata), "sha256": hashlib.sha256(metadata).hexdigest()}
    return dict(sorted(files.items())), metadata


__all__ = ["SaveError", "StateWriter", "save_run_state"]
