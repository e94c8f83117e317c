"""A training run from beginning to end. Reads like its list of contents: prepare, build, restore, train; or, with --dry-run, plan."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from open_lm import __version__
from open_lm.checkpoint.average import average_weights
from open_lm.checkpoint.epoch_pair import is_pair, load_pair
from open_lm.checkpoint.load import carried_tokenizer, open_weights
from open_lm.checkpoint.part_reader import load_tensors
from open_lm.checkpoint.run_state import RunState, state_tensors
from open_lm.checkpoint.weights import load_weights
from open_lm.data.batch import Batch
from open_lm.data.loader import Loader
from open_lm.data.plans_file import write_plans
from open_lm.evaluation.in_training import Beside, InTraining
from open_lm.evaluation.tasks_in_training import TasksInTraining
from open_lm.job import Job, prepare
from open_lm.model.flops import flops_per_token, matmul_parameters
from open_lm.model.transformer import Transformer, count_parameters
from open_lm.model.zoo import model_name
from open_lm.params import Params
from open_lm.params.averagers import parse_averagers
from open_lm.params.ending import seconds_of
from open_lm.params.fields import counted
from open_lm.scoring import tasks_config, validation_config
from open_lm.tokenizer import check_match
from open_lm.train import farewell, forecast
from open_lm.train.agreement import Meeting
from open_lm.train.averaging import Averages, KeepAverages, SaveAverages
from open_lm.train.endings import Endings
from open_lm.train.failure import Failure
from open_lm.train.guard import Guard, add_to_log
from open_lm.train.launcher import LauncherWatch, seconds_since_launch
from open_lm.train.loop import Callback, Position, train
from open_lm.train.metrics import MetricsLog, StepProgress, over_processes
from open_lm.train.optimizer import make_optimizer
from open_lm.train.outliers import Outliers
from open_lm.train.parallel import World, autocast_dtype, from_first, parallelize
from open_lm.train.remote_sync import copied
from open_lm.train.run_folder import copy_code, start_logging, write_config, write_params, write_tokenizer
from open_lm.train.run_states import RunStates
from open_lm.train.saving import SavePlan, Weights
from open_lm.train.schedule import make_schedule
from open_lm.train.sinks import make_sinks
from open_lm.train.skipped import SkippedSteps
from open_lm.train.step import Step, StepConfig
from open_lm.train.throughput import Throughput, find_peak


@dataclass(frozen=True)
class Trained:
    """What training changes, on this process's device."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    averages: Averages
    outliers: Outliers

    def extra(self) -> dict[str, Tensor]:
        """What a run state holds besides model and optimizer."""
        return {**self.averages.tensors(), **self.outliers.tensors()}


def run(params: Params, world: World, warnings: Sequence[str] = ()) -> int:
    """Train as the options say. Returns the exit code.

    Raises:
        UserError: a mistake in options or files, on every process, before anything started.
    """
    job = prepare(params, world)
    guard = Guard(f"process {world.rank}", job.folder.log, world.size > 1, job.params.ending.watchdog_minutes * 60)
    meeting, ended = Meeting(), False
    with job.lock or nullcontext(), ExitStack() as guarded:
        start_logging(job.folder, job.params.log, world)
        try:
            with copied(job.folder.path, job.remote, job.params.checkpoint.remote_sync_frequency) if world.is_first else nullcontext():
                code = begin(job, guard, guarded, meeting, warnings)
                ended = True
        finally:
            if ended:  # torchrun ends the first process where another one leaves with a code of its own
                meeting()
        return code


def begin(job: Job, guard: Guard, guarded: ExitStack, meeting: Meeting, warnings: Sequence[str]) -> int:
    """Train unless there is nothing to do. Returns the exit code.

    Args:
        guarded: closed when all that follows training is written; the guard is entered there.
    """
    params, world = job.params, job.world
    for warning in (*warnings, *job.warnings):
        logging.warning(warning)
    if job.start.step >= job.length.total_steps:
        logging.info(
            f"{job.folder.path}: the run is finished ({counted(job.start.step, 'step')}); nothing to do. Give more --epochs to go on"
        )
        return 0
    before: int | None = from_first(farewell.ended_under_this_launcher(job.folder) if world.is_first else None)
    if before is not None:
        return before
    if world.is_first:
        describe_run(job)
        farewell.begin(job.folder)
    failure = Failure(world, job.folder.log, world.is_first or params.log.log_local, guard)
    with failure:
        trained = build(job)
        guarded.enter_context(guard)
        return train_job(job, trained, guard, failure, meeting)


def dry_run(params: Params, world: World, warnings: Sequence[str] = ()) -> None:
    """Print what a run would be, and write nothing. Raises UserError with every problem found."""
    job = prepare(params, world, claim=False)
    params = job.params
    with torch.device("meta"):
        parameters = count_parameters(Transformer(job.config, job.kernel))
    plan = SavePlan.of(params.checkpoint, params.batch.epochs)
    schedule = make_schedule(params.optimizer, job.length)
    pure_bf16 = params.parallel.precision == "bf16" or params.parallel.fsdp_pure_bf16
    size = forecast.Size(parameters, job.config.seq_len, pure_bf16, len(parse_averagers(params.averaging.averagers)))
    for warning in (*warnings, *job.warnings):
        print(f"warning: {warning}")
    for line in (*job.lines(), *forecast.lines(job.length, plan, schedule, job.start, size)):
        print(line)


def describe_run(job: Job) -> None:
    """The start of the log, params.txt, and what else lies in the run folder from the beginning."""
    params, world, length = job.params, job.world, job.length
    resolved = {
        **params.flat(),
        **job.config.to_dict(),
        "name": job.folder.name,
        "log_path": job.folder.path / "out.log",
        "checkpoint_path": job.folder.checkpoints,
        "device": world.device,
        "rank": world.rank,
        "world_size": world.size,
        "distributed": world.size > 1,
        "global_batch_size": length.global_batch_size,
        "per_gpu_batch_size": length.global_batch_size // world.size,
        "data_streams": job.data.streams,
        "total_steps": length.total_steps,
    }
    write_params(job.folder, resolved)
    known = {"batch_size": None, "global_batch_size": length.global_batch_size, "data_streams": job.data.streams}
    write_config(job.folder, params, job.config.to_dict(), **known)
    write_plans(job.folder.path, job.lineage.plans, job.lineage.batches, length.total_steps)
    if job.data.tokenizer:
        write_tokenizer(job.folder, job.data.tokenizer)
    if params.log.copy_codebase:
        copy_code(job.folder)
    for line in job.lines():
        logging.info(line)
    logging.info(f"Options that differ from the defaults ({job.folder.path / 'params.txt'} has all):")
    for name, value in params.changed().items():
        logging.info(f"  {name}: {value}")


def build(job: Job) -> Trained:
    """Model, optimizer and what belongs to them on their devices, with first, pretrained or resumed values."""
    torch.manual_seed(job.params.data.seed)
    model = Transformer(job.config, job.kernel)
    model.init_weights()
    if job.restored is None:
        start_weights(model, job)
    describe_model(job, count_parameters(model))
    spread = parallelize(model, job.params.parallel, job.world)
    optimizer = make_optimizer(spread, job.params.optimizer)
    averages = Averages(spread, parse_averagers(job.params.averaging.averagers))
    trained = Trained(spread, optimizer, averages, Outliers(job.params.ending.skip_spikes, job.world.device))
    if job.restored:
        restore(job, trained)
    return trained


def restore(job: Job, trained: Trained) -> None:
    """Everything as it was saved; averages that were not begin from the weights."""
    assert job.restored
    averages = trained.averages
    outliers = (trained.outliers if job.resumed else Outliers(device=job.world.device)).tensors()  # a new run has its own measure
    before = job.averagers_before
    if is_pair(job.restored):
        load_pair(job.restored, trained.model, trained.optimizer)
    else:
        extra = {**averages.tensors(averages.saved(before)), **outliers}
        load_tensors(job.restored, state_tensors(trained.model, trained.optimizer, extra), optional=outliers)
    averages.restart_unless(before)
    if not job.resumed:
        logging.info(f"Model and optimizer from {job.restored}; step, schedule and data begin anew")
        return
    state = job.resumed[1]
    logging.info(f"Resumed from {job.restored}: step {state.step}, {state.sequences} sequences, {state.tokens} tokens")


def start_weights(model: Transformer, job: Job) -> None:
    """The weights of --pretrained or --average, if one is given. Raises ValueError where they are unreadable or do not fit."""
    params = job.params
    if params.model.pretrained:
        file, path = open_weights(params.model.pretrained)
        load_weights(model, file.state_dict, path, file.keys)
        holder = (f"--pretrained {path}", carried_tokenizer(file, path))  # a file behind a URL was not there to be looked at before
        check_match([*job.holders, holder], params.data.allow_tokenizer_mismatch)
        logging.info(f"Weights from {path}")
    if params.averaging.average:
        asked = params.averaging
        file = average_weights(asked.average, asked.average_coefficients, allow_mismatch=params.data.allow_tokenizer_mismatch)
        load_weights(model, file.state_dict, "--average", file.keys)
        logging.info("Weights: " + " + ".join(f"{factor:g} x {name}" for name, factor in file.about["average"]))


def describe_model(job: Job, parameters: int) -> None:
    """Log lines: size, arithmetic, and the peak that `mfu` is measured against."""
    used = throughput(job, parameters)
    logging.info(f"Model {model_name(job.params.model.model)}: {parameters:,} parameters")
    logging.info(
        f"Of them {matmul_parameters(job.config, parameters):,} without the input embedding (N); "
        f"{used.flops_per_token:,} FLOPs per token (6 N + 12 L A S, forward and backward)"
    )
    per_device = f"{used.peak.tflops:,.1f} TFLOP/s a device ({used.peak.source})" if used.peak else "unknown, so no mfu; give --peak-tflops"
    logging.info(f"Peak of the arithmetic: {per_device}")


def throughput(job: Job, parameters: int) -> Throughput:
    """What tokens per second mean in this run."""
    flops = flops_per_token(job.config, parameters, job.config.seq_len)
    return Throughput(job.world.size, job.config.seq_len, flops, find_peak(job.world.device, job.params.log.peak_tflops))


def train_job(job: Job, trained: Trained, guard: Guard, failure: Failure, meeting: Meeting) -> int:
    """Train, with everything that happens beside it, and close all of it whatever happens. Returns the exit code."""
    params, world, length = job.params, job.world, job.length
    step = make_step(job, trained)
    with ExitStack() as stack:
        tolerate, sources = params.data.data_tolerate_error_p, bool(job.source_names)
        before = {"rows_before": job.lineage.first, "lost_before": job.lost_before}
        tell = None if world.is_first else tell_loss(job)
        loader = Loader(job.data.rows, job.shape, params.data.workers, tolerate, job.masks, sources, **before, tell=tell)
        stack.enter_context(loader)
        states = make_run_states(job, trained, loader)
        schedule, endings = make_schedule(params.optimizer, length), make_endings(params, guard)
        beside = Beside(guard.progress, lambda: bool(endings.asked()))
        callbacks = [*make_callbacks(job, trained, step, states, loader, beside), meeting]
        for callback in callbacks:
            stack.callback(callback.close)
        stack.enter_context(failure)  # told before anything is closed
        end, ending = train(_on_device(loader, world.device), step, schedule, length, job.config.seq_len, job.start, callbacks, endings)
        with guard.beside_the_step(end.step):
            states.wait()
        guard.steps_ended()
        for line in loader.log_lines():
            logging.info(line)
        if tolerate and (lost := over_processes(loader.lost_rows, world.device)):
            logging.info(f"data: lost and masked in this run, on all processes together: {counted(lost, 'row')}")
    if world.is_first:
        farewell.leave(job.folder, ending, end)
    return ending.exit_code


def tell_loss(job: Job) -> Callable[[str], None]:
    """How a process without the run's log says there which shards it has lost."""
    return lambda line: add_to_log(job.folder.log, f"process {job.world.rank}: {line}", "WARNING")


def make_step(job: Job, trained: Trained) -> Step:
    """The optimizer step that the options ask for."""
    params = job.params
    config = StepConfig(
        params.batch.accum_freq,
        params.optimizer.grad_clip_norm,
        params.optimizer.z_loss_coefficient,
        autocast_dtype(params.parallel),
        len(job.source_names),
    )
    return Step(trained.model, trained.optimizer, config, job.world, trained.outliers)


def make_endings(params: Params, guard: Guard) -> Endings:
    """What may end the run before its end."""
    limit = params.ending.time_limit
    deadline = None if limit is None else time.monotonic() + seconds_of(limit) - seconds_since_launch()
    return Endings(guard, deadline, params.ending.max_nonfinite_steps)


def _on_device(batches: Loader, device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield batch.to(device)


def make_run_states(job: Job, trained: Trained, loader: Loader) -> RunStates:
    """What saves the run states."""
    params = job.params.checkpoint
    plan = SavePlan.of(params, job.params.batch.epochs)
    describe, asynchronous = partial(run_state, job, loader), not params.sync_save
    return RunStates(job.states, plan, trained.model, trained.optimizer, describe, job.world, asynchronous, trained.extra)


def make_callbacks(job: Job, trained: Trained, step: Step, states: RunStates, loader: Loader, beside: Beside) -> list[Callback]:
    """What happens beside training, in its order: average, log, save the run state, validate, save weights with the validation; then, with
    all of that safe, score tasks.
    """
    params, world = job.params, job.world
    model, averages, folder = trained.model, trained.averages, job.folder.checkpoints
    plan = SavePlan.of(params.checkpoint, params.batch.epochs)
    sinks = make_sinks(params.log, job.folder, params.flat(), job.start.step) if world.is_first else []
    keep = KeepAverages(averages, step, params.averaging.log_avg_model_training_loss)
    used = throughput(job, count_parameters(model))
    log = MetricsLog(sinks, params.log.log_every_n_steps, job.length, used, loader, job.start, job.source_names, keep.metrics)
    in_model, about = averages.in_model_by_name, about_weights(job)
    name, start = model_name(params.model.model), job.start.step
    config = validation_config(params, world, job.length.global_batch_size)
    validation = InTraining(model, job.validation, config, folder, name, log.validated, in_model, start, beside=beside)
    callbacks: list[Callback] = [
        LauncherWatch(),
        keep,
        log,
        states,
        validation,
        Weights(folder, plan, model, step.optimizer, about, states.describe, lambda: validation.metrics, world),
        SaveAverages(folder, plan, averages, about, world),
        *make_tasks(job, model, log, beside),
    ]
    if not world.is_first:
        return callbacks
    return [*callbacks, SkippedSteps(job.folder, params.log.log_every_n_steps, job.start), StepProgress(job.length, job.start)]


def make_tasks(job: Job, model: nn.Module, log: MetricsLog, beside: Beside) -> list[Callback]:
    """What scores --eval-tasks, if there are any."""
    if job.tasks is None:
        return []
    config = tasks_config(job.params, job.world)
    return [TasksInTraining(model, job.tasks, config, job.folder.checkpoints, log.scored, job.start, beside=beside)]


def run_state(job: Job, loader: Loader, position: Position) -> RunState:
    """The plain values of a run state. Where rows may be lost, every process must call this."""
    tokenizer = job.data.tokenizer
    return RunState(
        step=position.step,
        sequences=position.sequences,
        tokens=position.tokens,
        global_batch_size=job.length.global_batch_size,
        plan=job.data.description,
        model_config=job.config.to_dict(),
        params=job.params.flat(),
        tokenizer={**tokenizer.identity, "config": tokenizer.config_json} if tokenizer else None,
        versions={"open_lm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        world_size=job.world.size,
        epoch=position.epoch,
        sequences_per_epoch=job.length.sequences_per_epoch,
        plans=list(job.lineage.plans),
        batches=list(job.lineage.batches),
        lost_rows=over_processes(loader.lost_rows, job.world.device) if loader.tolerate else job.lost_before,
    )


def about_weights(job: Job) -> dict[str, Any]:
    """What an epoch_N.pt says about itself."""
    tokenizer = job.data.tokenizer
    about: dict[str, Any] = {"name": job.folder.name, "model_config": job.config.to_dict(), "params": job.params.flat()}
    return {**about, **(tokenizer.in_checkpoint() if tokenizer else {})}
