"""Processes and devices: the world, and the functions that spread a plain model over it.

Applied in one order: activation checkpointing, compile (per block), then FSDP2, DDP or nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from open_lm.model.transformer import Transformer
from open_lm.params import ParallelParams
from open_lm.params.fields import counted


@dataclass(frozen=True)
class World:
    """This process among all processes of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the process that writes logs and files."""
        return self.rank == 0


@contextlib.contextmanager
def join_world(params: ParallelParams) -> Iterator[World]:
    """Join the processes that the launcher started; one process without a launcher needs no group.

    Raises:
        ValueError: another world size than --preset-world-size.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if params.preset_world_size not in (None, size):
        raise ValueError(f"--preset-world-size {params.preset_world_size}: the launcher started {counted(size, 'process')}")
    with _deterministic() if params.deterministic else contextlib.nullcontext():
        device = _device(params)
        grouped = size > 1 or params.force_distributed
        if grouped:
            backend = params.dist_backend or ("nccl" if device.type == "cuda" else "gloo")
            where: dict[str, Any] = {"init_method": params.dist_url}
            if params.dist_url == "env://" and "MASTER_ADDR" not in os.environ:
                where = {"store": dist.HashStore()}
            elif params.dist_url == "env://" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
                where = {"store": _store_of_restart(rank, size)}
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(minutes=30), **where)
        try:
            yield World(rank, size, device)
        finally:
            if grouped:
                dist.destroy_process_group()


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """PyTorch's deterministic algorithms, and no others; to be entered before CUDA starts, which reads the environment then."""
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ.setdefault("NCCL_ALGO", "^NVLS")  # sums made in the switch
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    torch.use_deterministic_algorithms(True)  # not warn_only: flash and memory-efficient attention would then stay as they are
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)


def _store_of_restart(rank: int, size: int) -> dist.Store:
    """torchrun keeps its store over restarts; without names of its own, a restarted process would look for the dead ones' addresses."""
    store, _, _ = next(dist.rendezvous("env://", rank, size))
    return dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def alone(params: ParallelParams) -> World:
    """For --dry-run: the first of as many processes as --preset-world-size says or a launcher started, without a group."""
    size = params.preset_world_size or int(os.environ.get("WORLD_SIZE", 1))
    return World(0, size, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


def _device(params: ParallelParams) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not params.no_set_device_rank:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda", torch.cuda.current_device())


def from_first(value: Any) -> Any:
    """The first process's value, on every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(problems: list[str]) -> list[str]:
    """The problems of all processes, each once, on every process."""
    if not dist.is_initialized():
        return problems
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, problems)
    return list(dict.fromkeys(problem for one in everyone for problem in one))


def autocast_dtype(params: ParallelParams) -> torch.dtype | None:
    """The type of autocast, None without it."""
    return torch.bfloat16 if params.precision in ("amp_bfloat16", "amp_bf16") and not params.fsdp_pure_bf16 else None


def parallelize(model: Transformer, params: ParallelParams, world: World) -> nn.Module:
    """The model on its device, spread over the world. Parameters keep their names but for DDP's `module.`."""
    pure = params.precision == "bf16" or params.fsdp_pure_bf16
    model.to(device=world.device, dtype=torch.bfloat16 if pure else None)
    model.grad_checkpointing = params.grad_checkpointing
    if params.torchcompile:
        for block in model.layers:
            block.compile()
    if not dist.is_initialized():
        return model
    if params.fsdp:
        return _shard(model, params, world)
    devices = [world.device.index] if world.device.type == "cuda" else None
    spread = DistributedDataParallel(model, device_ids=devices, static_graph=params.ddp_static_graph, gradient_as_bucket_view=True)
    if (params.deterministic or world.device.type == "cpu") and not params.torchcompile:  # which would compile for this shape
        # DDP makes other buckets after its first backward pass, and a resumed run would add in another order in its first step
        spread(torch.zeros((1, 2), dtype=torch.int64, device=world.device)).sum().backward()
        spread.zero_grad()
    return spread


def _shard(model: Transformer, params: ParallelParams, world: World) -> nn.Module:
    # inputs of the blocks keep their type: activations are bf16 as it is, and the rotary table must not be (`model/rotary.py`)
    low = torch.bfloat16 if params.fsdp_amp else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = dist.device_mesh.init_device_mesh(world.device.type, (world.size,))
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@contextlib.contextmanager
def gradient_sync(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Reduce gradients over the processes in this backward pass, or only add them up here."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
        yield
    elif isinstance(model, DistributedDataParallel) and not wanted:
        with model.no_sync():
            yield
    else:
        yield
