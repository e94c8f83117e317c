"""Weights files: `epoch_N.pt` in OpenLM's keys, as OpenLM left them or as we write them; `load_weights` puts them into a model."""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from open_lm import storage
from open_lm.params.fields import nearest
from open_lm.progress import Progress

_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
"""Parts of a name that DDP, compilation, checkpointing and FSDP put into it."""


@dataclass(frozen=True)
class WeightsFile:
    """Content of a weights file: tensors by our parameter names, and everything else (`epoch`, `name`, `step`, `model_config`, ...)."""

    state_dict: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    """How the file itself calls the tensors, for messages."""


def clean_name(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy float needs; OpenLM's files hold some."""
    scalar = np.float64(0).__reduce__()[0]
    return [scalar, np.dtype, *(type(np.dtype(t)) for t in ("float64", "float32", "int64"))]


def read_pt(path: str) -> Any:
    """The content of a .pt file, tensors on the CPU, without running anything in it.

    The tensors are mapped, not read: those that are not used cost neither time nor memory. While they live, nothing may write into
    the file in place; to replace it, as this project does, is harmless.

    Args:
        path: a local file, or a URL, which is fetched into the temporary folder first.

    Raises:
        ValueError: absent, not whole, or with content that only unpickling could give.
    """
    try:
        with _at_hand(path) as file:
            return _load(file)
    except storage.FullDiskError:  # under the copy
        raise
    except FileNotFoundError:
        raise ValueError(f"checkpoint {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {path}: {error}") from None


def _load(file: Path) -> Any:
    whole = zipfile.is_zipfile(file)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # said below, where it is in the way
            return torch.load(
                file, map_location="cpu", weights_only=True, mmap=whole or None
            )  # files of PyTorch before 1.6 can't be mapped
    except OSError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        with open(file, "rb") as opened:
            begin = opened.read(storage.FIRST_BYTES)
        raise ValueError(_why_not(begin, zipfile.ZipFile(file).namelist() if whole else [], error)) from None


def _why_not(begin: bytes, members: Sequence[str], error: Exception) -> str:
    """Why a file is no checkpoint, by what it is; never in torch's words, which advise to load it unsafely.

    Args:
        members: of a whole zip.
    """
    again = "download or copy it again"
    if any(name.endswith("/constants.pkl") for name in members):
        return "is a TorchScript archive, not a checkpoint; save the module's state_dict with torch.save"
    if begin.startswith((b"PK", b"\x80")) and (names := re.search(r"GLOBAL ([\w.]+)", str(error))):
        return f"holds more than tensors and plain values, so it is not read: {names[1]}; save its state_dict alone"
    if members and not any(name.endswith("/data.pkl") for name in members):
        return storage.instead_of("a checkpoint", begin)
    if begin.startswith((b"PK", b"\x80")):
        return f"not a whole checkpoint file, or no checkpoint; {again}"
    return storage.instead_of("a checkpoint", begin, again)


@contextlib.contextmanager
def _at_hand(path: str) -> Iterator[Path]:
    """The file itself, or a local copy of a remote one for as long as it is being opened; a mapping of it stays valid."""
    if not storage.is_remote(path):
        yield storage.local_path(path)
        return
    with tempfile.NamedTemporaryFile(prefix="openlm-", suffix=".pt") as copy:
        with storage.open_read(path) as file, storage.tell_full_disk(copy.name):
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
        yield Path(copy.name)


def read_weights(path: str) -> WeightsFile:
    """A weights file: OpenLM's dict, `{"state_dict": ...}`, its averager files (`av_model_sd`), or a bare state dict.

    Raises:
        ValueError: as `read_pt`, or no tensors inside.
    """
    content = read_pt(path)
    about: dict[str, Any] = {}
    key = next((key for key in ("state_dict", "av_model_sd") if isinstance(content, dict) and key in content), None)
    if key is not None:
        about = {k: v for k, v in content.items() if k != key}
        content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"checkpoint {path}: holds no state_dict of tensors")
    keys = {clean_name(str(key)): str(key) for key in content}
    if twice := next((str(key) for key in content if keys[clean_name(str(key))] != str(key)), None):
        raise ValueError(f"checkpoint {path}: holds {twice} and {keys[clean_name(twice)]}, which are one parameter; keep one of them")
    return WeightsFile({clean_name(str(key)): value for key, value in content.items()}, about, keys)


def widest_type(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The type that holds all weights of a file, without the frequencies, which no training changes; fp32 where none is floating-point."""
    types = {value.dtype for name, value in tensors.items() if value.is_floating_point() and not name.endswith("inv_freq")}
    return reduce(torch.promote_types, types) if types else torch.float32


def first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The first name of each tensor, by name: tied ones share memory, here as in the file."""
    first: dict[Any, str] = {}
    return {name: first.setdefault((t.untyped_storage().data_ptr(), t.storage_offset(), t.shape), name) for name, t in tensors.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str, keys: Mapping[str, str] | None = None) -> None:
    """Copy weights into a model, plain or spread over processes; each of those takes its part, without communication.

    Args:
        weights: by parameter name; one name of a tied tensor is enough.
        source: the file, for messages.
        keys: how the file calls the tensors, for messages.

    Raises:
        ValueError: names or shapes of another model, with the first differences.
    """
    named = {clean_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    same = {name: [other for other, q in named.items() if q is p] for name, p in named.items()}
    given = {name: value for name, value in weights.items() if not name.endswith("inv_freq")}
    keys = keys or {}
    problems = [f"has {keys.get(name, name)}, which the model lacks.{nearest(name, named)}" for name in given if name not in named]
    found: dict[str, Tensor] = {}
    for name, parameter in named.items():
        own = next((n for n in (name, *same[name]) if n in given), None)
        if own is None:
            problems.append(f"lacks {name}")
        elif given[own].shape != parameter.shape:
            problems.append(f"{keys.get(own, own)} is {list(given[own].shape)}, the model's is {list(parameter.shape)}")
        else:
            found[name] = given[own]
    problems += [
        f"{keys.get(name, name)} and {keys.get(first, first)} differ, which are one in the model" for name, first in _torn(found, same)
    ]
    if problems:
        more = f" (and {len(problems) - 3} more differences)" if len(problems) > 3 else ""
        raise ValueError(f"checkpoint {source}: belongs to another model: {'; '.join(problems[:3])}{more}; check --model")
    for name, value in found.items():
        fill(named[name], value)


def _torn(found: Mapping[str, Tensor], same: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Names of one parameter for which a file has different tensors."""
    once = first_names(found)
    for name, value in found.items():
        first = same[name][0]
        if first != name and first in found and once[name] != once[first] and not value.is_meta and not torch.equal(value, found[first]):
            yield name, first


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one of the same shape: plain, or this process's shard of it."""
    if isinstance(target, DTensor):
        whole = value.to(target.device)
        target.to_local().copy_(distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None).to_local())
    else:
        target.copy_(value)


def openlm_order(names: Iterable[str]) -> list[str]:
    """Parameter names of our model in the order of OpenLM's, which numbers the parameters of an optimizer by it."""
    return sorted(names, key=lambda name: not name.startswith("post_embed_norm"))


def write_weights(path: Path, state_dict: Mapping[str, Tensor], about: Mapping[str, Any], key: str = "state_dict") -> None:
    """Write a weights file, whole or not at all.

    Args:
        about: plain values only (numbers, strings, lists, dicts, None), so that the file loads without unpickling.
        key: under which the tensors lie.
    """
    write_pt(path, {**about, key: {name: state_dict[name] for name in openlm_order(state_dict)}})


def write_stats(path: Path, content: Mapping[str, Any]) -> None:
    """Write a `stats_N.pt`: plain values, whole or not at all."""
    write_pt(path, dict(content))


def write_pt(path: Path, content: Mapping[str, Any]) -> None:
    """Write a .pt file, whole or not at all."""
    size = _tensor_bytes(content)
    with storage.atomic_write(path, size=size) as file, Progress("writing", size // 10**6, "MB", look=lambda: file.tell() // 10**6):
        torch.save(content, file)


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_tensor_bytes, value.values()))
    return value.nbytes if isinstance(value, Tensor) else 0


def newest_weights(folder: str | Path) -> Path | None:
    """The `epoch_N.pt` of the highest N in a run folder or its checkpoints folder; None where there is none."""
    found: list[tuple[int, Path]] = []
    for where in (Path(folder), Path(folder) / "checkpoints"):
        with contextlib.suppress(OSError):
            found += [(int(m.group(1)), p) for p in where.iterdir() if (m := re.fullmatch(r"epoch_(\d+)\.pt", p.name))]
    return max(found)[1] if found else None
