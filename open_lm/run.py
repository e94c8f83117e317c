"""A training run from beginning to end. Reads like its list of contents: check everything, build, resume, train."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from open_lm import __version__
from open_lm.checkpoint.run_state import RunState, load_tensors, newest_run_state, read_run_state, state_tensors
from open_lm.checkpoint.weights import load_weights, read_weights
from open_lm.data.access import access_of
from open_lm.data.batch import Batch
from open_lm.data.dataset import TrainData, ValidationSet, build_train_data, build_validation_data
from open_lm.data.loader import Loader, LoaderShape, allowed_processes, check_processes
from open_lm.data.masks import Masks
from open_lm.data.source_names import source_names
from open_lm.evaluation.in_training import InTraining, ValidationConfig
from open_lm.model.attention import Kernel, get_kernel
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer, count_parameters
from open_lm.model.zoo import get_model_config
from open_lm.params import ModelParams, Params, Problems
from open_lm.params.ending import seconds_of
from open_lm.train import farewell, forecast
from open_lm.train.endings import Endings
from open_lm.train.guard import Guard, add_to_log, end_soon
from open_lm.train.launcher import LauncherWatch, seconds_since_launch, was_ours
from open_lm.train.loop import Callback, Position, train
from open_lm.train.metrics import MetricsLog, ProgressBar, make_sinks
from open_lm.train.optimizer import make_optimizer
from open_lm.train.outliers import Outliers
from open_lm.train.parallel import World, autocast_dtype, from_all, from_first, parallelize
from open_lm.train.resume import Lineage, as_restarted, check_rest, epochs_complete, learning_rate_note, resume_lineage, start_lineage
from open_lm.train.run_folder import RunFolder, choose_run_folder, claim_run_folder, copy_code, refuse_existing, start_logging, write_params
from open_lm.train.saving import RunStates, SavePlan, Weights
from open_lm.train.schedule import RunLength, global_batch_size, make_schedule, run_length
from open_lm.train.skipped import SkippedSteps
from open_lm.train.step import Step, StepConfig


@dataclass(frozen=True)
class Job:
    """Everything about a run that is known and checked before the model is built."""

    params: Params
    world: World
    folder: RunFolder
    config: ModelConfig
    kernel: Kernel
    data: TrainData
    masks: Masks
    validation: tuple[ValidationSet, ...]
    length: RunLength
    lineage: Lineage
    resumed: tuple[Path, RunState] | None
    lock: IO[str] | None
    """Of the run folder, on the first process."""

    @property
    def start(self) -> Position:
        """Where training begins or goes on."""
        if self.resumed is None:
            return Position(0, 0, 0, 0)
        state = self.resumed[1]
        return Position(state.step, state.sequences, state.tokens, epochs_complete(state, self.length))

    @property
    def source_names(self) -> tuple[str, ...]:
        """Of the sources whose losses are told; none where there is but one, whose loss is the run's."""
        return source_names([source.name for source in self.data.sources]) if len(self.data.sources) > 1 else ()


def run(params: Params, world: World, warnings: Sequence[str] = ()) -> int:
    """Train as the options say. Returns the exit code; see `main`.

    Raises:
        UserError: a mistake in options or files, on every process, before anything started.
    """
    job = prepare(params, world)
    with job.lock or nullcontext():
        start_logging(job.folder, params.log, world)
        for warning in warnings:
            logging.warning(warning)
        for note in job.lineage.notes:
            logging.warning(note)
        if job.start.step >= job.length.total_steps:
            logging.info(f"{job.folder.path}: the run is finished ({job.start.step} steps); nothing to do. Give more --epochs to go on")
            return 0
        before: int | None = from_first(farewell.ended_under_this_launcher(job.folder) if world.is_first else None)
        if before is not None:
            return before
        if world.is_first:
            describe(job)
            farewell.begin(job.folder)
        guard = Guard(f"process {world.rank}", job.folder.log, world.size > 1, params.ending.watchdog_minutes * 60)
        try:
            return train_job(job, *build(job), guard)
        except Exception as error:
            tell_failure(job, guard.step, error)
            raise


def tell_failure(job: Job, step: int | None, error: Exception) -> None:
    """An error of this process, in the log of the run; the process is gone soon, whatever its way out waits for."""
    world = job.world
    where = f"process {world.rank} stopped" + ("" if step is None else f" in or after step {step + 1}")
    if world.is_first or job.params.log.log_local:
        logging.error(f"{where}: {error}", exc_info=not isinstance(error, ValueError))
    if not world.is_first:
        add_to_log(job.folder.log, f"{where}: {error}")
    if world.size > 1:
        end_soon()


def dry_run(params: Params, world: World) -> None:
    """Print what a run would be, and write nothing. Raises UserError with every problem found."""
    job = prepare(params, world, claim=False)
    with torch.device("meta"):
        parameters = count_parameters(Transformer(job.config, job.kernel))
    plan = SavePlan.of(params.checkpoint, params.batch.epochs)
    schedule = make_schedule(params.optimizer, job.length)
    size = forecast.Size(parameters, job.config.seq_len, params.parallel.precision == "bf16" or params.parallel.fsdp_pure_bf16)
    for line in (*job.lineage.notes, *plan_lines(job), *forecast.lines(job.length, plan, schedule, job.start, size)):
        print(line)


def prepare(params: Params, world: World, claim: bool = True) -> Job:
    """Check options, files and folder, open the data and `claim` the folder. Raises UserError with every problem found."""
    problems = Problems()
    folder = choose_run_folder(params)
    if from_first(world.is_first and was_ours(folder.path)):
        params = from_first(as_restarted(params, folder))
    resumed = problems.attempt(find_resume, params.checkpoint.resume, folder, world)
    flags = {name: getattr(params.model, name) for name in ("model_norm", "ffn_type", "qk_norm", "positional_embedding_type")}
    config = problems.attempt(get_model_config, params.model.model, flags)
    kernel = problems.attempt(get_kernel, params.model.attn_name)
    batch = problems.attempt(global_batch_size, params.batch, world.size)
    # files are looked at even where model or batch are wrong, so that all mistakes are told at once
    sizes = {"seq_len": config.seq_len if config else 1, "vocab_size": config.vocab_size if config else 1 << 32}
    streams = params.data.data_streams or (resumed[1].plan.get("streams") if resumed else None)
    asked = replace(params.data, data_streams=streams)
    data = problems.attempt(build_train_data, asked, global_batch_size=batch or world.size, **sizes)
    access = problems.attempt(access_of, params.data)
    validation = problems.attempt(build_validation_data, params.validation, tokenizer=params.data.tokenizer, access=access, **sizes)
    length = lineage = masks = None
    if config and data:
        masks = problems.attempt(
            Masks.of, params.data, config.vocab_size, {s.files.eot_id for s in data.sources if s.files.eot_id is not None}
        )
    if config and batch and data:
        problems.attempt(check_processes, world.size, batch, data.streams)
        lineage = problems.attempt(find_lineage, params, data, config, batch, resumed[1] if resumed else None)
    if config and batch and data and lineage:
        length = problems.attempt(choose_length, params, data, config.seq_len, batch, lineage, resumed[1] if resumed else None)
    if not claim:
        problems.attempt(refuse_existing, folder, params.log, params.checkpoint.resume is not None)
    problems.found = from_all(problems.found)
    problems.raise_any()
    lock = problems.attempt(claim_run_folder, folder, params.log, params.checkpoint.resume is not None, world) if claim else None
    problems.raise_any()
    assert config and kernel and data and masks and length and lineage and validation is not None
    return Job(params, world, folder, config, kernel, data, masks, validation, length, lineage, resumed, lock)


def choose_length(params: Params, data: TrainData, seq_len: int, batch: int, lineage: Lineage, state: RunState | None) -> RunLength:
    """The run's length: --train-num-samples tokens an epoch, or one pass. Raises ValueError where the data don't suffice."""
    told = params.data.train_num_samples
    length = lineage.length(run_length(params.batch, told or data.epoch_rows() * seq_len, seq_len, batch))
    step, sequences = (state.step, state.sequences) if state else (0, 0)
    if state:
        check_rest(state, length)
    rows = sequences - lineage.first + max(0, length.total_steps - step) * batch
    # an epoch of one pass is asked for as often as there are epochs
    data.check_length(rows, params.data.multiple_data_passes or told is None)
    return length


def find_resume(resume: str | None, folder: RunFolder, world: World) -> tuple[Path, RunState] | None:
    """The run state that --resume means: the first process looks, all get its answer. None to start from the beginning."""
    if resume is None:
        return None
    found: tuple[Path, RunState] | str | None = None
    if world.is_first:
        try:
            if resume == "latest":
                found = newest_run_state(folder.checkpoints)
            else:
                found = (Path(resume), read_run_state(Path(resume)))
        except ValueError as error:
            found = f"--resume {resume}: {error}"
    found = from_first(found)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def find_lineage(params: Params, data: TrainData, config: ModelConfig, batch: int, state: RunState | None) -> Lineage:
    """The plans and batch sizes of the run. Raises ValueError, in words, where it would not go on as it began."""
    if state is None:
        return start_lineage(data.description, batch, config.seq_len)
    return resume_lineage(state, data.description, config, batch, params.data.new_data_plan)


def data_shape(job: Job) -> LoaderShape:
    """What this process reads, in numbers of the present plan."""
    start = job.start.sequences - job.lineage.first
    stop = start + (job.length.total_steps - job.start.step) * job.length.global_batch_size
    return LoaderShape(job.world.rank, job.world.size, job.length.global_batch_size, job.data.streams, start, stop)


def describe(job: Job) -> None:
    """The start of the log, params.txt, and what else lies in the run folder from the beginning."""
    params, world, length = job.params, job.world, job.length
    resolved = {
        **params.flat(),
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
        "seq_len": job.config.seq_len,
        "vocab_size": job.config.vocab_size,
        "total_steps": length.total_steps,
    }
    write_params(job.folder, resolved)
    if job.data.tokenizer:
        (job.folder.path / "tokenizer.json").write_text(job.data.tokenizer.json_text, encoding="utf-8")
    if params.log.copy_codebase:
        copy_code(job.folder)
    for line in (*plan_lines(job), *(f"  {name}: {value}" for name, value in sorted(resolved.items()))):
        logging.info(line)
    if world.device.type == "cpu" and params.parallel.precision != "fp32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logging.warning(
            f"--precision {params.parallel.precision}: this processor has no bf16 arithmetic; --precision fp32 is several times faster"
        )
    if params.optimizer.warmup >= length.schedule_end(length.epochs) and not params.optimizer.skip_scheduler:
        logging.warning(f"--warmup {params.optimizer.warmup}: the run has {length.total_steps} steps and never leaves its warm-up")


def plan_lines(job: Job) -> tuple[str, ...]:
    """The run in words."""
    world, length = job.world, job.length
    return (
        f"Run {job.folder.path}: {world.size} processes on {world.device.type}, open_lm {__version__}, torch {torch.__version__}",
        *job.data.log_lines(),
        *job.data.length_lines(length.sequences_per_epoch, data_shape(job).start, data_shape(job).stop or 0),
        f"This run goes on with {', '.join(map(str, allowed_processes(length.global_batch_size, job.data.streams)))} processes "
        "(what divides the global batch size and the streams) and any number of --workers",
        f"{length.total_steps} steps of {length.global_batch_size} sequences of {job.config.seq_len} tokens in {length.epochs} epochs",
    )


def build(job: Job) -> tuple[nn.Module, torch.optim.AdamW, Outliers]:
    """Model and optimizer on their devices, with first, pretrained or resumed values; and what the steps before say of outliers."""
    torch.manual_seed(job.params.data.seed)
    model = Transformer(job.config, job.kernel)
    model.init_weights()
    _start_from_pretrained(model, job.params.model)
    logging.info(f"Model {job.params.model.model}: {count_parameters(model):,} parameters")
    spread = parallelize(model, job.params.parallel, job.world)
    optimizer = make_optimizer(spread, job.params.optimizer)
    outliers = Outliers(job.params.ending.skip_spikes, job.world.device)
    if job.resumed:
        path, state = job.resumed
        load_tensors(path, state_tensors(spread, optimizer, outliers.tensors()), optional=outliers.tensors())
        logging.info(f"Resumed from {path}: step {state.step}, {state.sequences} sequences, {state.tokens} tokens")
        note = learning_rate_note(state, job.params.optimizer, job.length)
        if note:
            logging.warning(note)
    return spread, optimizer, outliers


def _start_from_pretrained(model: Transformer, params: ModelParams) -> None:
    if params.pretrained:
        load_weights(model, read_weights(params.pretrained).state_dict, params.pretrained)
        logging.info(f"Weights from {params.pretrained}")


def train_job(job: Job, model: nn.Module, optimizer: torch.optim.AdamW, outliers: Outliers, guard: Guard) -> int:
    """Train, with everything that happens beside it, and close all of it whatever happens. Returns the exit code."""
    params, world, length, start = job.params, job.world, job.length, job.start
    config = StepConfig(
        params.batch.accum_freq,
        params.optimizer.grad_clip_norm,
        params.optimizer.z_loss_coefficient,
        autocast_dtype(params.parallel),
        len(job.source_names),
    )
    step = Step(model, optimizer, config, world, outliers)
    limit = params.ending.time_limit
    deadline = None if limit is None else time.monotonic() + seconds_of(limit) - seconds_since_launch()
    with ExitStack() as stack:
        stack.enter_context(guard)
        tolerate, sources = params.data.data_tolerate_error_p, bool(job.source_names)
        loader = stack.enter_context(Loader(job.data.rows, data_shape(job), params.data.workers, tolerate, job.masks, sources))
        callbacks = make_callbacks(job, model, optimizer, loader, outliers)
        for callback in callbacks:
            stack.callback(callback.close)
        schedule = make_schedule(params.optimizer, length)
        endings = Endings(guard, deadline, params.ending.max_nonfinite_steps)
        end, ending = train(_on_device(loader, world.device), step, schedule, length, job.config.seq_len, start, callbacks, endings)
        for line in loader.log_lines():
            logging.info(line)
    if world.is_first:
        farewell.leave(job.folder, ending, end)
    return ending.exit_code


def _on_device(batches: Loader, device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield batch.to(device)


def make_callbacks(job: Job, model: nn.Module, optimizer: torch.optim.AdamW, loader: Loader, outliers: Outliers) -> list[Callback]:
    """What happens beside training, in its order: log, save the run state, validate, save weights with the validation."""
    params, world = job.params, job.world
    plan = SavePlan.of(params.checkpoint, params.batch.epochs)
    sinks = make_sinks(params.log, job.folder, params.flat(), job.start.step) if world.is_first else []
    log = MetricsLog(sinks, params.log.log_every_n_steps, job.length, loader, job.start, job.source_names)
    validation = InTraining(model, job.validation, validation_config(job), job.folder.checkpoints, params.model.model, log.validated)
    callbacks: list[Callback] = [
        LauncherWatch(),
        log,
        RunStates(job.folder.checkpoints, plan, model, optimizer, lambda position: run_state(job, position), world, outliers.tensors()),
        validation,
        Weights(job.folder.checkpoints, plan, model, about_weights(job), lambda: validation.metrics, world),
    ]
    if not world.is_first:
        return callbacks
    return [*callbacks, SkippedSteps(job.folder, params.log.log_every_n_steps, job.start), ProgressBar(job.length, job.start)]


def validation_config(job: Job) -> ValidationConfig:
    """The part of the options that validation needs."""
    params, world = job.params, job.world
    return ValidationConfig(
        every_epochs=params.validation.val_frequency,
        epochs=params.batch.epochs,
        global_batch_size=params.validation.global_val_batch_size or job.length.global_batch_size,
        precision="fp32" if autocast_dtype(params.parallel) is None else "amp_bfloat16",
        workers=params.data.workers,
        rank=world.rank,
        world_size=world.size,
    )


def run_state(job: Job, position: Position) -> RunState:
    """The plain values of a run state."""
    tokenizer = job.data.tokenizer
    return RunState(
        step=position.step,
        sequences=position.sequences,
        tokens=position.tokens,
        global_batch_size=job.length.global_batch_size,
        plan=job.data.description,
        model_config=job.config.to_dict(),
        params=job.params.flat(),
        tokenizer={"sha256": tokenizer.sha256, "eot_id": tokenizer.eot_id} if tokenizer else None,
        versions={"open_lm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        world_size=job.world.size,
        epoch=position.epoch,
        sequences_per_epoch=job.length.sequences_per_epoch,
        plans=list(job.lineage.plans),
        batches=list(job.lineage.batches),
    )


def about_weights(job: Job) -> dict[str, Any]:
    """What an epoch_N.pt says about itself."""
    tokenizer = job.data.tokenizer
    about: dict[str, Any] = {"name": job.folder.name, "model_config": job.config.to_dict(), "params": job.params.flat()}
    if tokenizer:
        about |= {"tokenizer_json": tokenizer.json_text, "eot_token": tokenizer.eot_token, "eot_id": tokenizer.eot_id}
    return about
