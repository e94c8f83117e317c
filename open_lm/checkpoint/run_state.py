"""Run states: `checkpoints/step_<n>/`, from which a run continues exactly, on any number of processes.

A folder holds the tensors of model and optimizer as a sharded torch.distributed.checkpoint, and `state.json`: the position, the
plan of the data, the parameters, and size and sha256 of every other file. It appears under its name only when whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.tensor import DTensor

from open_lm.checkpoint.weights import clean_name

STATE_FILE = "state.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stood, in plain values."""

    step: int
    """Optimizer steps made."""
    sequences: int
    """Sequences trained on: the number of the next row."""
    tokens: int
    """Tokens trained on."""
    global_batch_size: int
    plan: dict[str, Any]
    """What decides the order of the data, as its plan describes itself."""
    model_config: dict[str, Any]
    params: dict[str, Any]
    tokenizer: dict[str, Any] | None = None
    """sha256 and end-of-text id of the shards' tokenizer."""
    versions: dict[str, str] = field(default_factory=dict)
    world_size: int = 1
    epoch: int | None = None
    """Epochs complete; like all that follows, absent in run states of version 0.1."""
    sequences_per_epoch: int | None = None
    plans: list[dict[str, Any]] = field(default_factory=list)
    """The plans of the run, `{"first": number of its first row, "plan": description}`; the last one is `plan`."""
    batches: list[dict[str, int]] = field(default_factory=list)
    """Where each size of batch or row began: step, sequences and tokens before it, global_batch_size, seq_len."""


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor that training changes, by name: `model.<parameter>`, `optimizer.<parameter>.<moment>`, `extra`. Shards under FSDP."""
    tensors = dict(extra)
    for name, parameter in model.named_parameters():
        tensors[f"model.{clean_name(name)}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{clean_name(name)}.{key}"] = value
    return tensors


def save_run_state(folder: Path, tensors: dict[str, Tensor], state: RunState) -> Path:
    """Write `folder/step_<n>` and point `folder/latest` at it. All processes call this.

    Returns:
        The new folder.
    """
    target, temporary = folder / f"step_{state.step}", folder / f".step_{state.step}.tmp"
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _barrier()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is what is meant
        dcp.save(tensors, storage_writer=FileSystemWriter(temporary), no_dist=not dist.is_initialized())
    if first:
        files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(temporary.iterdir())}
        with open(temporary / STATE_FILE, "w", encoding="utf-8") as file:
            json.dump({**asdict(state), "files": files}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        _point_latest(folder, target)
    _barrier()
    return target


def _point_latest(folder: Path, target: Path) -> None:
    link = folder / ".latest.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    os.replace(link, folder / "latest")


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_states(folder: Path) -> list[Path]:
    """The step_<n> folders, newest first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        found = [(int(m.group(1)), p) for p in folder.iterdir() if (m := re.fullmatch(r"step_(\d+)", p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def read_run_state(path: Path) -> RunState:
    """The plain part of a run state, after every file of it was checked against its size and sha256.

    Raises:
        ValueError: not whole.
    """
    try:
        values = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        files = values.pop("files")
        state = RunState(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {path}: no whole run state: {error}") from None
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise ValueError(f"checkpoint {path}: {name} is not as it was written")
    return state


def newest_run_state(folder: Path) -> tuple[Path, RunState] | None:
    """The newest whole run state; broken ones are named in the log and passed over. None where there is none.

    Raises:
        ValueError: there are run states, and all of them are broken.
    """
    candidates = run_states(folder)
    for path in candidates:
        try:
            return path, read_run_state(path)
        except ValueError as error:
            logging.warning(f"{error}; trying the checkpoint before it")
    if candidates:
        raise ValueError(f"--resume latest: no checkpoint of {folder} is whole; remove them to start from the beginning")
    return None


def load_tensors(path: Path, tensors: dict[str, Tensor], optional: Container[str] = ()) -> None:
    """Fill tensors (plain, or shards of any layout) from a run state. All processes call this.

    Args:
        optional: names that states of earlier versions lack; those tensors stay as they are.

    Raises:
        ValueError: the state is of another model, with the first differences.
    """
    reader = _SafeReader(path)
    saved = reader.read_metadata().state_dict_metadata
    tensors = {name: tensor for name, tensor in tensors.items() if name in saved or name not in optional}
    _check_same_model(path, saved, tensors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())


def _check_same_model(path: Path, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    problems = [f"lacks {name}" for name in tensors if name not in saved]
    problems += [f"has {name}, which the model lacks" for name in saved if name not in tensors]
    problems += [
        f"{name} is {list(saved[name].size)}, the model's is {list(value.shape)}"
        for name, value in tensors.items()
        if name in saved and saved[name].size != value.shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more differences)" if len(problems) > 3 else ""
        raise ValueError(f"checkpoint {path}: belongs to another model: {'; '.join(problems[:3])}{more}; check --model")


_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties"),
        *("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "Path", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "Path", "PurePosixPath"},
}


class _MetadataUnpickler(pickle.Unpickler):
    """Builds the classes of a .metadata of tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if name in _METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which has no place there")


class _SafeReader(FileSystemReader):
    """Reads a folder whose .metadata may come from anywhere."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        file = Path(self.path) / ".metadata"
        try:
            metadata = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
            outside = [i.relative_path for i in metadata.storage_data.values() if Path(i.relative_path).name != i.relative_path]
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"checkpoint {file}: is not read: {error}") from None
        if outside:
            raise ValueError(f"checkpoint {file}: is not read: it points outside its folder ({outside[0]})")
        metadata.storage_meta.load_id = self.load_id
        return metadata


def delete_run_states(folder: Path, keep: Path) -> Iterator[Path]:
    """Delete every run state but one, oldest first; yields what went."""
    for path in reversed(run_states(folder)):
        if path.name != keep.name:
            shutil.rmtree(path)
            yield path


def full_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on the CPU of the first process, by clean names, one tensor at a time; empty on the others.

    All processes call this.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    whole: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if id(value) not in seen:
            tensor = value.full_tensor() if isinstance(value, DTensor) else value
            seen[id(value)] = tensor.detach().cpu().clone() if first else tensor.new_empty(0)
        if first:
            whole[clean_name(name)] = seen[id(value)]
    return whole
