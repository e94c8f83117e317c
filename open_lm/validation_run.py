"""A run that trains nothing: the weights of --resume, --pretrained or --average, validated on every --val-data and scored on --eval-tasks.

Its results are where a training run's are, in `checkpoints/results.jsonl` of the run folder and in the logs. With `--resume latest` that
is the folder of the run whose newest weights are validated, be they an epoch's or a run state's, and nothing else is touched there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from open_lm.checkpoint.average import average_weights
from open_lm.checkpoint.load import carried_tokenizer, choose_config, open_weights
from open_lm.checkpoint.run_state import read_run_state
from open_lm.checkpoint.state_folder import run_states
from open_lm.checkpoint.weights import WeightsFile, load_weights, newest_weights, read_weights
from open_lm.data.access import access_of
from open_lm.data.dataset import ValidationSet, build_validation_data
from open_lm.evaluation.in_training import InTraining
from open_lm.evaluation.open_tasks import OpenTasks
from open_lm.evaluation.tasks_in_training import TasksInTraining
from open_lm.model.attention import Kernel, get_kernel
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.params import LogParams, ModelParams, Params, Problems
from open_lm.params.fields import counted
from open_lm.scoring import ARCHITECTURE, as_built, check_same, check_tokens, find_tasks, tasks_config, validation_config
from open_lm.tokenizer import Holder, about_holders
from open_lm.train.parallel import World, from_all, from_first, parallelize
from open_lm.train.run_folder import (
    RunFolder,
    check_places,
    choose_run_folder,
    claim_run_folder,
    keep_warnings,
    refuse_existing,
    start_logging,
    write_config,
    write_params,
)
from open_lm.train.sinks import Sink, make_sinks
from open_lm.train.start import check_there

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
    holders: list[Holder]


def run_validation(params: Params, world: World, warnings: Sequence[str] = (), given: frozenset[str] = frozenset()) -> int:
    """Validate as the options say. Returns the exit code.

    Args:
        warnings: for the log.
        given: names of the options that have been given a value; what is said of the model has to agree with the weights.

    Raises:
        UserError: a mistake in options or files, on every process, before anything is computed.
    """
    folder, own = choose_run_folder(params), params.checkpoint.resume == "latest"
    problems = Problems()
    if world.is_first:
        problems.attempt(check_places, folder, params)
        if not problems.found:
            problems.attempt(refuse_existing, folder, params.log, own)
    problems.found = from_first(problems.found)
    with keep_warnings(world.is_first) as kept:
        opened = problems.attempt(_open, params, folder, world, given)
        check_same(problems, params, opened.tasks if opened else None)
        problems.found = from_all(problems.found)
        problems.raise_any()
    assert opened
    params = as_built(params, opened.config)
    lock = problems.attempt(claim_run_folder, folder, params.log, own, world)
    problems.raise_any()
    with lock or nullcontext(), ExitStack() as stack:
        if world.is_first and not own:
            about = {"name": folder.name, "world_size": world.size, "checkpoint": opened.path}
            write_params(folder, {**params.flat(), **opened.config.to_dict(), **about})
            write_config(folder, params, opened.config.to_dict())
        start_logging(folder, params.log, world)
        log, more = _sinks_of(params.log, own)
        found = [record.getMessage() for record in kept]
        for warning in (*warnings, *found, *more, *(opened.tasks.notices if opened.tasks else ())):
            logging.warning(warning)
        for line in about_holders(opened.holders):
            logging.info(line)
        sinks = make_sinks(log, folder, params.flat(), _NO_STEP if own else 0) if world.is_first else []
        for sink in sinks:
            stack.callback(sink.close)
        _validate(params, world, folder, opened, sinks)
    return 0


def _sinks_of(params: LogParams, own: bool) -> tuple[LogParams, list[str]]:
    """The options of the logs without those that can't tell of a run that went on, and words about that."""
    wanted = {name for item in params.report_to for name in item.split(",")}
    if not own or not wanted & {"wandb", "all"}:
        return params, []
    left = ("tensorboard",) if wanted & {"tensorboard", "all"} else ()
    words = "--report-to wandb: W&B takes nothing more for steps that a run has passed; the results are in the log and results.jsonl only"
    return replace(params, report_to=left), [words]


def _open(params: Params, folder: RunFolder, world: World, given: frozenset[str]) -> _Opened:
    """Weights and data. Raises UserError with all that is wrong with them."""
    problems = Problems()
    found = problems.attempt(_weights, params, folder)
    config = problems.attempt(_config, params.model, given, *found) if found else None
    kernel = problems.attempt(get_kernel, params.model.attn_name)
    train_batch = params.batch.global_batch_size or (params.batch.batch_size or 0) * world.size
    access = problems.attempt(access_of, params.data)
    sizes = {"seq_len": config.seq_len if config else 1, "vocab_size": config.vocab_size if config else 1 << 32}
    sets = problems.attempt(build_validation_data, params.validation, tokenizer=params.data.tokenizer, access=access, **sizes)
    carried = carried_tokenizer(*found) if found else None
    known = carried or next((one.tokenizer for one in sets or () if one.tokenizer), None)
    tasks = None
    if config and found:
        tasks = problems.attempt(find_tasks, params, known, config)
        with torch.device("meta"):
            model = Transformer(config, get_kernel("auto"))
        problems.attempt(load_weights, model, found[0].state_dict, found[1], found[0].keys)
    vocab_size, checkpoints = config.vocab_size if config else None, [(f"checkpoint {found[1]}", carried)] if found else []
    holders = problems.attempt(check_tokens, params, checkpoints, (), sets or (), tasks, vocab_size) or []
    problems.raise_any()
    assert found and config and kernel and sets is not None
    return _Opened(*found, config, kernel, sets, train_batch or 64, tasks, holders)


def _weights(params: Params, folder: RunFolder) -> tuple[WeightsFile, str]:
    average, resume = params.averaging.average, params.checkpoint.resume
    if average:
        file = average_weights(average, params.averaging.average_coefficients, allow_mismatch=params.data.allow_tokenizer_mismatch)
        return file, "average of " + " + ".join(f"{factor:g} x {name}" for name, factor in file.about["average"])
    if resume == "latest":
        return _newest(folder, params.checkpoint.checkpoint_dir)
    if resume:
        check_there(resume, folder)
    flag, name = ("--resume", resume) if resume else ("--pretrained", params.model.pretrained)
    try:
        return open_weights(str(name))
    except (ValueError, OSError) as error:
        raise ValueError(f"{flag} {name}: {error}") from None


def _newest(folder: RunFolder, states: str | None) -> tuple[WeightsFile, str]:
    """The newest weights of a run: an epoch's file, unless a whole run state, here or in --checkpoint-dir, is of a later step."""
    if not folder.path.is_dir():
        raise ValueError(f"--resume latest: there is no run {folder.path}; give the --name of one, or --resume PATH")
    path = newest_weights(folder.path)
    file = read_weights(str(path)) if path else None
    step = -1 if file is None else int(file.about.get("step") or 0)
    candidates = [*run_states(str(folder.checkpoints)), *(run_states(states) if states else [])]
    for state in sorted(candidates, key=_step_of, reverse=True):
        if _step_of(state) <= step:
            break
        try:
            if file is None or file.about.get("step") or (read_run_state(state).epoch or 0) > int(file.about.get("epoch") or 0):
                return open_weights(state)
        except ValueError as error:
            logging.warning(f"{error}; trying the checkpoint before it")
    if file is None:
        raise ValueError(f"--resume latest: {folder.path} holds no whole epoch_N.pt or step_<n>; give --checkpoint-dir, or --resume PATH")
    return file, str(path)


def _step_of(state: str) -> int:
    return int(state.rpartition("_")[2])


def _config(params: ModelParams, given: frozenset[str], file: WeightsFile, path: str) -> ModelConfig:
    """The one that the weights carry, with which all that is given has to agree; without one, that of --model."""
    flags = {name: getattr(params, name) for name in ARCHITECTURE if name in given}
    return choose_config(file, path, params.model if "model" in given else None, flags)


def _validate(params: Params, world: World, folder: RunFolder, opened: _Opened, sinks: list[Sink]) -> None:
    model = Transformer(opened.config, opened.kernel)
    load_weights(model, opened.file.state_dict, opened.path, opened.file.keys)
    spread, place, path = parallelize(model, params.parallel, world), _place(opened.file.about), opened.path
    what = f"{counted(len(opened.sets), 'set')}" + (f" and {counted(len(opened.tasks.tasks), 'task')}" if opened.tasks else "")
    logging.info(f"Validating {path} (step {place.step}) on {what} with {counted(world.size, 'process')}; nothing is trained")

    def tell(group: str, metrics: Mapping[str, Any], step: int) -> None:
        for sink in sinks:
            sink.write(metrics, step, group)

    if opened.tasks:
        told, how = partial(tell, "eval"), tasks_config(params, world, once=True)
        TasksInTraining(spread, opened.tasks, how, folder.checkpoints, told, None, path).after_epoch(place)
    config = validation_config(params, world, opened.batch, once=True)
    name, told = _model_name(params.model, opened.file.about), partial(tell, "valid")
    InTraining(spread, opened.sets, config, folder.checkpoints, name, told, None, None, path).after_epoch(place)


def _place(about: Mapping[str, Any]) -> _Place:
    tokens = about.get("tokens")
    return _Place(int(about.get("step") or 0), int(about.get("epoch") or 0), None if tokens is None else int(tokens))


def _model_name(params: ModelParams, about: Mapping[str, Any]) -> str:
    """As --model names it, else as the run of the weights did."""
    carried = about.get("params") or {}
    return str(carried.get("model", params.model)) if params.model == ModelParams().model else params.model
