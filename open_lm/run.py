"""A training run from beginning to end. Reads like its list of contents: check everything, build, resume, train."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

import torch
from torch import nn

from open_lm import __version__
from open_lm.checkpoint.average import average_weights
from open_lm.checkpoint.epoch_pair import is_pair, load_pair, place_in_data
from open_lm.checkpoint.find import Found
from open_lm.checkpoint.load import open_weights
from open_lm.checkpoint.part_reader import load_tensors
from open_lm.checkpoint.run_state import RunState, state_tensors
from open_lm.checkpoint.weights import load_weights
from open_lm.data.access import access_of
from open_lm.data.batch import Batch
from open_lm.data.dataset import TrainData, ValidationSet, build_train_data, build_validation_data
from open_lm.data.loader import Loader, LoaderShape, allowed_processes, check_processes
from open_lm.data.masks import Masks
from open_lm.data.plans_file import about_plan, write_plans
from open_lm.data.source_names import source_names
from open_lm.evaluation.in_training import InTraining, ValidationConfig
from open_lm.model.attention import Kernel, get_kernel
from open_lm.model.config import ModelConfig
from open_lm.model.flops import flops_per_token, matmul_parameters
from open_lm.model.transformer import Transformer, count_parameters
from open_lm.model.zoo import get_model_config
from open_lm.params import Params, Problems
from open_lm.params.averagers import parse_averagers
from open_lm.train.averaging import Averages, KeepAverages, SaveAverages
from open_lm.train.launcher import LauncherWatch
from open_lm.train.loop import Callback, Position, train
from open_lm.train.metrics import MetricsLog, ProgressBar, over_processes
from open_lm.train.optimizer import make_optimizer
from open_lm.train.parallel import World, autocast_dtype, from_all, parallelize
from open_lm.train.remote_folder import RemoteFolder
from open_lm.train.remote_resume import check_copy, clear_copy
from open_lm.train.remote_sync import copied
from open_lm.train.resume import Lineage, check_rest, epochs_complete, resume_lineage, start_lineage
from open_lm.train.run_folder import RunFolder, choose_run_folder, claim_run_folder, copy_code, start_logging, write_params
from open_lm.train.run_states import RunStates
from open_lm.train.saving import SavePlan, Weights
from open_lm.train.schedule import RunLength, global_batch_size, make_schedule, run_length
from open_lm.train.sinks import make_sinks
from open_lm.train.start import find_start
from open_lm.train.step import Step, StepConfig
from open_lm.train.throughput import Throughput, device_name, find_peak


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
    resumed: Found | None
    """The state whose position the run goes on from."""
    restored: str | None
    """What model and optimizer are taken from: that state, or one whose position is not taken (--reset-trainer-state)."""
    lock: IO[str] | None
    """Of the run folder, on the first process."""
    remote: RemoteFolder | None = None
    """The copy of the run folder, with --remote-sync."""

    @property
    def start(self) -> Position:
        """Where training begins or goes on."""
        if self.resumed is None:
            return Position(0, 0, 0, 0)
        state = self.resumed[1]
        return Position(state.step, state.sequences, state.tokens, epochs_complete(state, self.length))

    @property
    def states(self) -> str:
        """Folder or URL of the run states."""
        return self.params.checkpoint.checkpoint_dir or str(self.folder.checkpoints)

    @property
    def lost_before(self) -> int:
        """Rows that the run has lost before it was resumed."""
        return self.resumed[1].lost_rows if self.resumed else 0

    @property
    def source_names(self) -> tuple[str, ...]:
        """Of the sources whose losses are told; none where there is but one, whose loss is the run's."""
        return source_names([source.name for source in self.data.sources]) if len(self.data.sources) > 1 else ()


def run(params: Params, world: World, warnings: Sequence[str] = ()) -> None:
    """Train as the options say.

    Raises:
        UserError: a mistake in options or files, on every process, before anything started.
    """
    job = prepare(params, world)
    with job.lock or nullcontext(), ExitStack() as beside:
        start_logging(job.folder, params.log, world)
        if world.is_first:
            beside.enter_context(copied(job.folder.path, job.remote, params.checkpoint.remote_sync_frequency))
        for warning in warnings:
            logging.warning(warning)
        for note in job.lineage.notes:
            logging.warning(note)
        if job.start.step >= job.length.total_steps:
            logging.info(f"{job.folder.path}: the run is finished ({job.start.step} steps); nothing to do. Give more --epochs to go on")
            return
        if world.is_first:
            describe_run(job)
        try:
            train_job(job, *build(job))
        except ValueError as error:
            logging.error(f"process {world.rank}: {error}")
            raise
        except Exception:
            logging.exception(f"process {world.rank} stopped")
            raise


def prepare(params: Params, world: World) -> Job:
    """Check options, files and folder, and open the data. Raises UserError with every problem found."""
    problems = Problems()
    folder = choose_run_folder(params)
    remote = RemoteFolder(params.checkpoint.remote_sync, folder.name) if params.checkpoint.remote_sync else None
    resumed, restored = problems.attempt(find_start, params, folder, world, remote) or (None, None)
    flags = {name: getattr(params.model, name) for name in ("model_norm", "ffn_type", "qk_norm", "positional_embedding_type")}
    config = problems.attempt(get_model_config, params.model.model, flags)
    if remote and world.is_first and params.checkpoint.resume is None:
        problems.attempt(check_copy, remote, params.log.overwrite)
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
        resumed = (resumed[0], place_in_data(resumed[1], batch, config.seq_len)) if resumed else None
        lineage = problems.attempt(find_lineage, params, data, config, batch, resumed[1] if resumed else None)
    if config and batch and data and lineage:
        length = problems.attempt(choose_length, params, data, config.seq_len, batch, lineage, resumed[1] if resumed else None)
    problems.found = from_all(problems.found)
    problems.raise_any()
    lock = problems.attempt(claim_run_folder, folder, params.log, params.checkpoint.resume is not None, world)
    if remote and lock and params.log.overwrite and params.checkpoint.resume is None:
        problems.attempt(clear_copy, remote)
    problems.found = from_all(problems.found)
    problems.raise_any()
    assert config and kernel and data and masks and length and lineage and validation is not None
    return Job(params, world, folder, config, kernel, data, masks, validation, length, lineage, resumed, restored, lock, remote)


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


def find_lineage(params: Params, data: TrainData, config: ModelConfig, batch: int, state: RunState | None) -> Lineage:
    """The plans and batch sizes of the run. Raises ValueError, in words, where it would not go on as it began."""
    about = about_plan(params.data, data)
    if state is None:
        return start_lineage(data.description, batch, config.seq_len, about)
    return resume_lineage(state, data.description, config, batch, params.data.new_data_plan, about)


def data_shape(job: Job) -> LoaderShape:
    """What this process reads, in numbers of the present plan."""
    start = job.start.sequences - job.lineage.first
    stop = start + (job.length.total_steps - job.start.step) * job.length.global_batch_size
    return LoaderShape(job.world.rank, job.world.size, job.length.global_batch_size, job.data.streams, start, stop)


def describe_run(job: Job) -> None:
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
    write_plans(job.folder.path, job.lineage.plans, job.lineage.batches, length.total_steps)
    if job.data.tokenizer:
        (job.folder.path / "tokenizer.json").write_text(job.data.tokenizer.json_text, encoding="utf-8")
    if params.log.copy_codebase:
        copy_code(job.folder)
    for line in (
        f"Run {job.folder.path}: {world.size} processes on {device_name(world.device)}, open_lm {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}" + (f", CUDA {torch.version.cuda}" if world.device.type == "cuda" else ""),
        *job.data.log_lines(),
        *job.data.length_lines(length.sequences_per_epoch, data_shape(job).start, data_shape(job).stop or 0),
        f"This run goes on with {', '.join(map(str, allowed_processes(length.global_batch_size, job.data.streams)))} processes "
        "(what divides the global batch size and the streams) and any number of --workers",
        f"{length.total_steps} steps of {length.global_batch_size} sequences of {job.config.seq_len} tokens in {length.epochs} epochs",
        *(f"  {name}: {value}" for name, value in sorted(resolved.items())),
    ):
        logging.info(line)
    if world.device.type == "cpu" and params.parallel.precision != "fp32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logging.warning(
            f"--precision {params.parallel.precision}: this processor has no bf16 arithmetic; --precision fp32 is several times faster"
        )
    if params.optimizer.warmup >= length.schedule_end(length.epochs) and not params.optimizer.skip_scheduler:
        logging.warning(f"--warmup {params.optimizer.warmup}: the run has {length.total_steps} steps and never leaves its warm-up")


def build(job: Job) -> tuple[nn.Module, torch.optim.AdamW, Averages]:
    """Model, optimizer and averages on their devices, with first, pretrained or resumed values."""
    torch.manual_seed(job.params.data.seed)
    model = Transformer(job.config, job.kernel)
    model.init_weights()
    if job.restored is None:
        start_weights(model, job.params)
    describe_model(job, count_parameters(model))
    spread = parallelize(model, job.params.parallel, job.world)
    optimizer = make_optimizer(spread, job.params.optimizer)
    averages = Averages(spread, parse_averagers(job.params.averaging.averagers))
    if job.restored:
        restore(job, spread, optimizer, averages)
    return spread, optimizer, averages


def restore(job: Job, model: nn.Module, optimizer: torch.optim.AdamW, averages: Averages) -> None:
    """Model, optimizer and averages as they were saved; averages that were not begin from the weights."""
    assert job.restored
    before = job.resumed[1].params.get("averagers") if job.resumed else None
    if is_pair(job.restored):
        before = None  # such files hold no averages
        load_pair(job.restored, model, optimizer)
    else:
        load_tensors(job.restored, state_tensors(model, optimizer, averages.tensors(averages.saved(before))))
    averages.restart_unless(before, job.start.step)
    if job.resumed:
        state = job.resumed[1]
        logging.info(f"Resumed from {job.restored}: step {state.step}, {state.sequences} sequences, {state.tokens} tokens")
    else:
        logging.info(f"Model and optimizer from {job.restored}; step, schedule and data begin anew")


def describe_model(job: Job, parameters: int) -> None:
    """Log lines: size, arithmetic, and the peak that `mfu` is measured against."""
    used = throughput(job, parameters)
    logging.info(f"Model {job.params.model.model}: {parameters:,} parameters")
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


def start_weights(model: Transformer, params: Params) -> None:
    """The weights of --pretrained or --average, if one is given. Raises ValueError where they are not read or of another model."""
    if params.model.pretrained:
        file, path = open_weights(params.model.pretrained)
        load_weights(model, file.state_dict, path)
        logging.info(f"Weights from {path}")
    if params.averaging.average:
        file = average_weights(params.averaging.average, params.averaging.average_coefficients)
        load_weights(model, file.state_dict, "--average")
        logging.info("Weights: " + " + ".join(f"{factor:g} x {name}" for name, factor in file.about["average"]))


def train_job(job: Job, model: nn.Module, optimizer: torch.optim.AdamW, averages: Averages) -> None:
    """Train, with everything that happens beside it, and close all of it whatever happens."""
    params, world, length, start = job.params, job.world, job.length, job.start
    config = StepConfig(
        params.batch.accum_freq,
        params.optimizer.grad_clip_norm,
        params.optimizer.z_loss_coefficient,
        autocast_dtype(params.parallel),
        len(job.source_names),
    )
    step = Step(model, optimizer, config, world)
    with ExitStack() as stack:
        tolerate, sources = params.data.data_tolerate_error_p, bool(job.source_names)
        before = {"rows_before": job.lineage.first, "lost_before": job.lost_before}
        loader = stack.enter_context(Loader(job.data.rows, data_shape(job), params.data.workers, tolerate, job.masks, sources, **before))
        states = make_run_states(job, step, averages, loader)
        callbacks = make_callbacks(job, step, averages, states, loader)
        for callback in callbacks:
            stack.callback(callback.close)
        schedule = make_schedule(params.optimizer, length)
        end = train(_on_device(loader, world.device), step, schedule, length, job.config.seq_len, start, callbacks)
        states.wait()
        for line in loader.log_lines():
            logging.info(line)
    logging.info(f"Finished: {end.step} steps, {end.tokens} tokens. Weights and run states: {job.folder.checkpoints}")


def _on_device(batches: Loader, device: torch.device) -> Iterator[Batch]:
    for batch in batches:
        yield batch.to(device)


def make_run_states(job: Job, step: Step, averages: Averages, loader: Loader) -> RunStates:
    """What saves the run states."""
    params = job.params.checkpoint
    plan = SavePlan.of(params, job.params.batch.epochs)
    describe, asynchronous = partial(run_state, job, loader), not params.sync_save
    return RunStates(job.states, plan, step.model, step.optimizer, describe, job.world, asynchronous, averages.tensors)


def make_callbacks(job: Job, step: Step, averages: Averages, states: RunStates, loader: Loader) -> list[Callback]:
    """What happens beside training, in its order: average, log, save the run state, validate, save weights with the validation."""
    params, world = job.params, job.world
    model, folder = step.model, job.folder.checkpoints
    plan = SavePlan.of(params.checkpoint, params.batch.epochs)
    sinks = make_sinks(params.log, job.folder, params.flat(), job.start.step) if world.is_first else []
    keep = KeepAverages(averages, step, params.averaging.log_avg_model_training_loss)
    used = throughput(job, count_parameters(model))
    log = MetricsLog(sinks, params.log.log_every_n_steps, job.length, used, loader, job.start, job.source_names, keep.metrics)
    in_model, about = averages.in_model_by_name, about_weights(job)
    validation = InTraining(model, job.validation, validation_config(job), folder, params.model.model, log.validated, in_model)
    callbacks: list[Callback] = [
        LauncherWatch(),
        keep,
        log,
        states,
        validation,
        Weights(folder, plan, model, step.optimizer, about, states.describe, lambda: validation.metrics, world),
        SaveAverages(folder, plan, averages, about, world),
    ]
    return [*callbacks, ProgressBar(job.length, job.start)] if world.is_first else callbacks


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
        tokenizer={"sha256": tokenizer.sha256, "eot_id": tokenizer.eot_id} if tokenizer else None,
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
    if tokenizer:
        about |= {"tokenizer_json": tokenizer.json_text, "eot_token": tokenizer.eot_token, "eot_id": tokenizer.eot_id}
    return about
