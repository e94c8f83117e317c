"""Reads the tensors of a run state, from a disk or a URL: every process the pieces that it needs, each checked against its CRC-32."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zlib
from collections import defaultdict
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from open_lm import storage
from open_lm.checkpoint.run_state import AVERAGER
from open_lm.checkpoint.safe_metadata import METADATA_FILE, metadata_from
from open_lm.checkpoint.state_folder import read_state_file
from open_lm.progress import Progress

_THREADS = 4


def load_tensors(state: str | os.PathLike[str], tensors: dict[str, Tensor], optional: Container[str] = ()) -> None:
    """Fill tensors (plain, or shards of any layout) from a run state. All processes call this.

    Memory: up to four entries (a process's shard of one tensor) beside the tensors.

    Args:
        optional: names that states of earlier versions lack; those tensors stay as they are.

    Raises:
        ValueError: the state is of another model, with the first differences; or damaged.
    """
    metadata = _read_metadata(str(state))
    saved = metadata.state_dict_metadata
    tensors = {name: tensor for name, tensor in tensors.items() if name in saved or name not in optional}
    _check_same_model(str(state), saved, tensors)
    _fill(str(state), metadata, tensors, alone=not dist.is_initialized())


def saved_shapes(state: str | os.PathLike[str]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What a run state holds: `model.<parameter>`, `optimizer.<parameter>.<moment>`, ... Raises ValueError where it is not read."""
    saved: dict[str, Any] = _read_metadata(str(state)).state_dict_metadata
    return {name: (value.size, value.properties.dtype) for name, value in saved.items()}


def load_some(state: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
    """Fill some of a run state's tensors, whole ones, in this process alone. Raises ValueError where it is damaged."""
    _fill(str(state), _read_metadata(str(state)), tensors, alone=True)


def _fill(url: str, metadata: Metadata, tensors: dict[str, Tensor], alone: bool) -> None:
    reader = _PartReader(url, metadata, _read_checksums(url))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is what is meant
            dcp.load(tensors, storage_reader=reader, no_dist=alone)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise (cause if isinstance(cause, (ValueError, OSError)) else ValueError(f"checkpoint {url}: is not read: {cause!r}")) from error


def _read_metadata(url: str) -> Metadata:
    file = storage.join(url, METADATA_FILE)
    try:
        data = storage.read_bytes(file)
    except OSError as error:
        raise ValueError(f"checkpoint {file}: is not read: {error}") from None
    return metadata_from(data, file)


def _read_checksums(url: str) -> dict[str, list[int]]:
    """CRC-32 of the entries of each file, in the order of their offsets; none in run states of version 0.2."""
    files = read_state_file(url)["files"]
    words = {name: about.get("crc32", "") for name, about in files.items()}
    return {name: [int(text[i : i + 8], 16) for i in range(0, len(text), 8)] for name, text in words.items() if text}


def _check_same_model(url: str, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    problems = [f"lacks {name}" for name in tensors if name not in saved]
    problems += [f"has {name}, which the model lacks" for name in saved if name not in tensors and not name.startswith(AVERAGER)]
    problems += [
        f"{name} is {list(saved[name].size)}, the model's is {list(value.shape)}"
        for name, value in tensors.items()
        if name in saved and saved[name].size != value.shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more differences)" if len(problems) > 3 else ""
        raise ValueError(f"checkpoint {url}: belongs to another model: {'; '.join(problems[:3])}{more}; check --model")


class _PartReader(StorageReader):
    """What torch.distributed.checkpoint asks of a storage, for a folder or URL."""

    def __init__(self, url: str, metadata: Metadata, checksums: dict[str, list[int]]):
        self.url, self.metadata = url, metadata
        offsets: dict[str, list[int]] = defaultdict(list)
        for place in metadata.storage_data.values():
            offsets[place.relative_path].append(place.offset)
        self.expected = {
            name: dict(zip(sorted(offsets[name]), sums, strict=True)) for name, sums in checksums.items() if len(sums) == len(offsets[name])
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read once, by the safe reader."""
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As planned."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """A folder or URL."""
        return True

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors, some files at a time."""
        files: dict[str, dict[int, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            if item.type != LoadItemType.TENSOR:
                raise ValueError(f"checkpoint {self.url}: {item.storage_index.fqn} is no tensor")
            place = self.metadata.storage_data[item.storage_index]
            files[place.relative_path][place.offset].append(item)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(Progress("reading", len(files), "files").over(pool.map(partial(self._read_file, planner), files.items())))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_file(self, planner: LoadPlanner, wanted: tuple[str, dict[int, list[ReadItem]]]) -> None:
        name, entries = wanted
        expected = self.expected.get(name, {})
        with storage.open_read(storage.join(self.url, name)) as file, torch.no_grad():
            for offset, items in sorted(entries.items()):
                length = self.metadata.storage_data[items[0].storage_index].length
                file.seek(offset)
                data = file.read(length)
                if len(data) != length or (offset in expected and zlib.crc32(data) != expected[offset]):
                    raise ValueError(_damaged(storage.join(self.url, name)))
                whole = _entry(data, storage.join(self.url, name))
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(narrow_tensor_by_index(whole, item.storage_offsets, item.lengths))
                    planner.commit_tensor(item, target)


def _entry(data: bytes, file: str) -> Tensor:
    try:
        value: Tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):  # torch's words advise to load it unsafely
        raise ValueError(_damaged(file)) from None
    return value


def _damaged(file: str) -> str:
    return f"checkpoint {file}: is not as it was written; resume from an earlier step"
