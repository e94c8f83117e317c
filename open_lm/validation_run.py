"""A run that trains nothing: the weights of --resume, --pretrained or --average, validated on every --val-data and scored on --eval-tasks.

Its results are where a training run's are, in `checkpoints/results.jsonl` of the run folder and in the logs. With `--resume latest` that
is the folder of the run whose newest weights are validated, where nothing else is touched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from open_lm.checkpoint.average import average_weights
from open_lm.checkpoint.load import carried_config, carried_tokenizer, open_weights
from open_lm.checkpoint.weights import WeightsFile, load_weights
from open_lm.data.access import access_of
from open_lm.data.dataset import ValidationSet, build_validation_data
from open_lm.evaluation.in_training import InTraining, ValidationConfig
from open_lm.evaluation.intervals import IntervalOptions
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.tasks_in_training import OpenTasks, TasksConfig, TasksInTraining, open_tasks
from open_lm.model.attention import Kernel, get_kernel
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.model.zoo import get_model_config
from open_lm.params import ModelParams, Params, Problems
from open_lm.train.parallel import World, autocast_dtype, from_all, parallelize
from open_lm.train.run_folder import RunFolder, choose_run_folder, claim_run_folder, start_logging, write_params
from open_lm.train.sinks import Sink, make_sinks

_NO_STEP = 1 << 40
"""A step that no run reaches: sinks of a run that exists drop nothing."""


@dataclass(frozen=True)
class _Place:
    """Where the run of the weights stood, as far as they tell."""

    step: int
    epoch: int
    tokens: int | None = None


@dataclass(frozen=True)
class _Opened:
    """What is validated, and on what."""

    file: WeightsFile
    path: str
    config: ModelConfig
    kernel: Kernel
    sets: tuple[ValidationSet, ...]
    batch: int
    tasks: OpenTasks | None


def run_validation(params: Params, world: World) -> int:
    """Validate as the options say. Returns the exit code.

    Raises:
        UserError: a mistake in options or files, on every process, before anything is computed.
    """
    folder, own = choose_run_folder(params), params.checkpoint.resume == "latest"
    problems = Problems()
    opened = problems.attempt(_open, params, folder, world)
    problems.found = from_all(problems.found)
    problems.raise_any()
    assert opened
    lock = problems.attempt(claim_run_folder, folder, params.log, own, world)
    problems.raise_any()
    with lock or nullcontext(), ExitStack() as stack:
        start_logging(folder, params.log, world)
        if world.is_first and not own:
            write_params(folder, {**params.flat(), "name": folder.name, "world_size": world.size, "checkpoint": opened.path})
        sinks = make_sinks(params.log, folder, params.flat(), _NO_STEP if own else 0) if world.is_first else []
        for sink in sinks:
            stack.callback(sink.close)
        _validate(params, world, folder, opened, sinks)
    return 0


def _open(params: Params, folder: RunFolder, world: World) -> _Opened:
    """Weights and data. Raises UserError with all that is wrong with them."""
    problems = Problems()
    found = problems.attempt(_weights, params, folder)
    config = problems.attempt(_config, params.model, *found) if found else None
    kernel = problems.attempt(get_kernel, params.model.attn_name)
    train_batch = params.batch.global_batch_size or (params.batch.batch_size or 0) * world.size
    batch = params.validation.global_val_batch_size or train_batch or 64
    access = problems.attempt(access_of, params.data)
    sizes = {"seq_len": config.seq_len if config else 1, "vocab_size": config.vocab_size if config else 1 << 32}
    sets = problems.attempt(build_validation_data, params.validation, tokenizer=params.data.tokenizer, access=access, **sizes)
    tasks, url = None, params.validation.eval_tasks
    if config and found:
        if url:
            tasks = problems.attempt(open_tasks, url, params.data.tokenizer, carried_tokenizer(*found), config.vocab_size)
        with torch.device("meta"):
            model = Transformer(config, get_kernel("auto"))
        problems.attempt(load_weights, model, found[0].state_dict, found[1])
    problems.raise_any()
    assert found and config and kernel and sets
    return _Opened(*found, config, kernel, sets, batch, tasks)


def _weights(params: Params, folder: RunFolder) -> tuple[WeightsFile, str]:
    average, resume = params.averaging.average, params.checkpoint.resume
    if average:
        file = average_weights(average, params.averaging.average_coefficients)
        return file, "average of " + " + ".join(f"{factor:g} x {name}" for name, factor in file.about["average"])
    if resume == "latest" and not folder.path.is_dir():
        raise ValueError(f"--resume latest: there is no run {folder.path}; give the --name of one, or --resume PATH")
    flag, name = ("--resume", resume) if resume else ("--pretrained", params.model.pretrained)
    try:
        return open_weights(str(folder.path) if name == "latest" else str(name))
    except (ValueError, OSError) as error:
        raise ValueError(f"{flag} {name}: {error}") from None


def _config(params: ModelParams, file: WeightsFile, path: str) -> ModelConfig:
    """Of --model where it is given, else the one that the weights carry, else --model's default."""
    if params.model == ModelParams().model and file.about.get("model_config"):
        return carried_config(file, path)
    flags = {name: getattr(params, name) for name in ("model_norm", "ffn_type", "qk_norm", "positional_embedding_type")}
    return get_model_config(params.model, flags)


def _validate(params: Params, world: World, folder: RunFolder, opened: _Opened, sinks: list[Sink]) -> None:
    model = Transformer(opened.config, opened.kernel)
    model.init_buffers()
    load_weights(model, opened.file.state_dict, opened.path)
    logging.info(f"Validating {opened.path} on {len(opened.sets)} sets with {world.size} processes; nothing is trained")
    spread, place, path = parallelize(model, params.parallel, world), _place(opened.file.about), opened.path
    precision: Precision = "fp32" if autocast_dtype(params.parallel) is None else "amp_bfloat16"

    def tell(group: str, metrics: Mapping[str, Any], step: int) -> None:
        for sink in sinks:
            sink.write(metrics, step, group)

    if opened.tasks:
        tasks_config = TasksConfig(1, 1, opened.config.seq_len, precision, world.rank, world.size)
        told = partial(tell, "eval")
        TasksInTraining(spread, opened.tasks, tasks_config, folder.checkpoints, told, None, path).after_epoch(place)
    config = _validation_config(params, world, opened.batch, precision)
    name, told = _model_name(params.model, opened.file.about), partial(tell, "valid")
    InTraining(spread, opened.sets, config, folder.checkpoints, name, told, None, None, path).after_epoch(place)


def _place(about: Mapping[str, Any]) -> _Place:
    return _Place(int(about.get("step") or 0), int(about.get("epoch") or 0))


def _model_name(params: ModelParams, about: Mapping[str, Any]) -> str:
    """As --model names it, else as the run of the weights did."""
    carried = about.get("params") or {}
    return str(carried.get("model", params.model)) if params.model == ModelParams().model else params.model


def _validation_config(params: Params, world: World, batch: int, precision: Precision) -> ValidationConfig:
    asked = params.validation
    return ValidationConfig(
        every_epochs=1,
        epochs=1,
        global_batch_size=batch,
        precision=precision,
        workers=params.data.workers,
        rank=world.rank,
        world_size=world.size,
        intervals=IntervalOptions(asked.val_seq_ci, asked.val_tok_ci, asked.val_max_pop_ci, asked.val_iter_ci),
    )
