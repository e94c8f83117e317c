"""A run before it begins: its options, files and folder checked, its data opened; everything that is known before the model is built."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

import torch

from open_lm import __version__
from open_lm.checkpoint.epoch_pair import is_pair, place_in_data
from open_lm.checkpoint.find import Found
from open_lm.checkpoint.load import carried_tokenizer, outline
from open_lm.checkpoint.run_state import RunState
from open_lm.checkpoint.weights import load_weights
from open_lm.data.access import access_of
from open_lm.data.dataset import TrainData, ValidationSet, build_train_data, build_validation_data
from open_lm.data.loader import LoaderShape, allowed_processes, check_processes
from open_lm.data.masks import Masks
from open_lm.data.plans_file import about_plan
from open_lm.data.source_names import source_names
from open_lm.evaluation.open_tasks import OpenTasks
from open_lm.evaluation.tasks_in_training import lost_scores
from open_lm.model.attention import Kernel, get_kernel
from open_lm.model.config import ModelConfig, model_config_from
from open_lm.model.transformer import Transformer
from open_lm.model.zoo import NoSuchModelFile, get_model_config, model_name
from open_lm.params import ModelParams, Params, Problems
from open_lm.params.fields import counted
from open_lm.scoring import ARCHITECTURE, as_built, check_same, check_tokens, find_tasks, tasks_config
from open_lm.tokenizer import TOKENIZER, Holder, about_holders, load_tokenizer, much_smaller
from open_lm.train.averaging import averager_changes
from open_lm.train.launcher import sign_lock, was_ours
from open_lm.train.loop import Position
from open_lm.train.parallel import World, from_all, from_first
from open_lm.train.remote_folder import RemoteFolder
from open_lm.train.remote_resume import check_copy, clear_copy
from open_lm.train.resume import Lineage, as_restarted, changes, check_rest, epochs_complete, resume_lineage, start_lineage
from open_lm.train.run_folder import RunFolder, check_places, choose_run_folder, claim_run_folder, keep_warnings, refuse_existing
from open_lm.train.schedule import WARMUP, RunLength, global_batch_size, run_length, warmup_steps
from open_lm.train.start import find_start
from open_lm.train.throughput import device_name


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
    tasks: OpenTasks | None = None
    """Of --eval-tasks."""
    holders: tuple[Holder, ...] = ()
    """What has ids, checkpoints included, and the tokenizers that are known to have made them."""
    warnings: tuple[str, ...] = ()
    """Told by the run as soon as it has its log, and by --dry-run."""

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
    def averagers_before(self) -> str | None:
        """--averagers of the state that the run goes on from; a pair of `epoch_N.pt` and `optimizer_N.pt` holds none."""
        return self.resumed[1].params.get("averagers") if self.resumed and not is_pair(self.resumed[0]) else None

    @property
    def lost_before(self) -> int:
        """Rows that the run has lost before it was resumed."""
        return self.resumed[1].lost_rows if self.resumed else 0

    @property
    def source_names(self) -> tuple[str, ...]:
        """Of the sources whose losses are told; none where there is but one, whose loss is the run's."""
        return source_names([source.name for source in self.data.sources]) if len(self.data.sources) > 1 else ()

    @property
    def shape(self) -> LoaderShape:
        """What this process reads, in numbers of the present plan."""
        start, batch = self.start.sequences - self.lineage.first, self.length.global_batch_size
        stop = start + (self.length.total_steps - self.start.step) * batch
        return LoaderShape(self.world.rank, self.world.size, batch, self.data.streams, start, stop)

    def lines(self) -> tuple[str, ...]:
        """The run in words."""
        world, length, shape = self.world, self.length, self.shape
        *fewer, most = allowed_processes(length.global_batch_size, self.data.streams)
        cuda = f", CUDA {torch.version.cuda}" if world.device.type == "cuda" else ""
        return (
            f"Run {self.folder.path}: {counted(world.size, 'process')} on {device_name(world.device)}, open_lm {__version__}, "
            f"torch {torch.__version__}, Python {platform.python_version()}{cuda}",
            *self.data.log_lines(),
            *about_holders(self.holders),
            *self.data.length_lines(length.sequences_per_epoch, shape.start, shape.stop or 0),
            f"This run goes on with {', '.join([*map(str, fewer), counted(most, 'process')])} "
            "(what divides the global batch size and the streams) and any number of --workers",
            *(self.tasks.notices if self.tasks else ()),
            f"{counted(length.total_steps, 'step')} of {counted(length.global_batch_size, 'sequence')} of {self.config.seq_len} tokens "
            f"in {counted(length.epochs, 'epoch')}",
        )


def prepare(params: Params, world: World, claim: bool = True) -> Job:
    """Check options, files and folder, open the data and `claim` the folder. Raises UserError with every problem found.

    What is logged as a warning on the way is kept in `Job.warnings`.
    """
    with keep_warnings(world.is_first) as kept:
        job = _prepare(params, world, claim)
        job = replace(job, params=as_it_acts(job))
        for words in _warnings(job):
            logging.warning(words)
    return replace(job, warnings=tuple(record.getMessage() for record in kept))


def _prepare(params: Params, world: World, claim: bool) -> Job:
    problems = Problems()
    folder = choose_run_folder(params)
    if world.is_first:
        problems.attempt(check_places, folder, params)
    problems.found = from_first(problems.found)
    fitting = not problems.found
    if from_first(world.is_first and was_ours(folder.path)):
        params = from_first(as_restarted(params, folder))
    remote = RemoteFolder(params.checkpoint.remote_sync, folder.name) if params.checkpoint.remote_sync else None
    resuming = params.checkpoint.resume is not None
    # before its states are looked at: who wrote there may still do so
    early = claim and resuming and fitting and from_first(folder.path.is_dir())
    lock = problems.attempt(claim_run_folder, folder, params.log, resuming, world) if early else None
    resumed, restored = problems.attempt(find_start, params, folder, world, remote, claim and not problems.found) or (None, None)
    config = problems.attempt(find_config, params.model, resumed[1] if resumed else None)
    if remote and world.is_first:
        problems.attempt(check_copy, remote, params.log.overwrite, resuming)
    kernel = problems.attempt(get_kernel, params.model.attn_name)
    if params.parallel.fsdp_cpu_offload and world.device.type != "cpu":
        problems.found.append("--fsdp-cpu-offload: not built yet for GPUs; leave it out")
    looked = problems.attempt(carried_tokenizers, params, folder, config, kernel, resumed, restored) if world.is_first else None
    carried: list[Holder] = from_first(looked) or []
    batch = problems.attempt(global_batch_size, params.batch, world.size)
    # files are looked at even where model or batch are wrong, so that all mistakes are told at once
    sizes = {"seq_len": config.seq_len if config else 1, "vocab_size": config.vocab_size if config else 1 << 32}
    saved = resumed[1].plan if resumed else {}
    asked = replace(params.data, data_streams=params.data.data_streams or saved.get("streams"))
    data = problems.attempt(build_train_data, asked, global_batch_size=batch or world.size, saved=saved, **sizes)
    access = problems.attempt(access_of, params.data)
    validation = problems.attempt(build_validation_data, params.validation, tokenizer=params.data.tokenizer, access=access, **sizes)
    length = lineage = masks = tasks = None
    known = next((tokenizer for _, tokenizer in carried if tokenizer), None)
    if config and data:
        of_sets = next((one.tokenizer for one in validation or () if one.tokenizer), None)
        tasks = problems.attempt(find_tasks, params, data.tokenizer or known or of_sets, config)
        masks = problems.attempt(
            Masks.of, params.data, config.vocab_size, {s.files.eot_id for s in data.sources if s.files.eot_id is not None}
        )
    if config and batch and data:
        problems.attempt(check_processes, world.size, batch, data.streams)
        resumed = (resumed[0], place_in_data(resumed[1], batch, config.seq_len)) if resumed else None
        compared = params.data.allow_tokenizer_mismatch or known is not None  # by `check_tokens`
        lineage = problems.attempt(find_lineage, params, data, config, batch, resumed[1] if resumed else None, compared)
    if config and batch and data and lineage:
        length = problems.attempt(choose_length, params, data, config.seq_len, batch, lineage, resumed[1] if resumed else None)
    vocab_size, shards = config.vocab_size if config else None, data.sources if data else ()
    holders = problems.attempt(check_tokens, params, carried, shards, validation or (), tasks, vocab_size) or []
    if world.is_first and fitting and not early:
        problems.attempt(refuse_existing, folder, params.log, resuming)
    check_same(problems, params, tasks)
    _raise_any(problems, lock)
    if claim and not early:
        lock = problems.attempt(claim_run_folder, folder, params.log, resuming, world)
    if remote and lock and not resuming:
        problems.attempt(clear_copy, remote)
    _raise_any(problems, lock)
    if lock:
        sign_lock(lock)
    assert config and kernel and data and masks and length and lineage and validation is not None
    opened = (params, world, folder, config, kernel, data, masks, validation, length, lineage, resumed, restored, lock, remote, tasks)
    return Job(*opened, tuple(holders))


def _raise_any(problems: Problems, lock: IO[str] | None) -> None:
    """On every process, what any found; the folder is then free for the next command."""
    problems.found = from_all(problems.found)
    if problems.found and lock:
        lock.close()
    problems.raise_any()


def find_config(params: ModelParams, state: RunState | None) -> ModelConfig:
    """The model that --model means; where its file is gone, the one of the run that goes on. Raises ValueError as `get_model_config`."""
    try:
        return get_model_config(params.model, {name: getattr(params, name) for name in ARCHITECTURE})
    except NoSuchModelFile:
        if state is None or not state.model_config:
            raise
        logging.warning(f"--model {params.model}: no such file; the run goes on with the model that it has")
        return model_config_from(state.model_config, "of the run")


def as_it_acts(job: Job) -> Params:
    """The options with what the model's configuration says, and the warm-up in steps."""
    before = job.resumed[1].params.get("warmup", WARMUP) if job.resumed else None
    steps = warmup_steps(job.params.optimizer.warmup, job.length, before)
    return as_built(replace(job.params, optimizer=replace(job.params.optimizer, warmup=steps)), job.config)


def _warnings(job: Job) -> Iterator[str]:
    """What is said about a run that is right."""
    params, length = job.params, job.length
    yield from vocabulary_note(job)
    yield from job.lineage.notes
    if job.resumed and (words := changes(job.resumed[1], params, length)):
        yield words
    yield from averager_changes(job.averagers_before, params.averaging.averagers, job.start.step) if job.resumed else ()
    warm = warmup_steps(params.optimizer.warmup, length)
    if warm > 1 and warm >= length.schedule_end(length.epochs) and not params.optimizer.skip_scheduler:
        yield f"--warmup {warm}: the run has {counted(length.total_steps, 'step')} and never leaves its warm-up"
    if job.world.device.type == "cpu" and params.parallel.precision != "fp32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        yield f"--precision {params.parallel.precision}: this processor has no bf16 arithmetic; --precision fp32 is several times faster"
    if params.parallel.fsdp_cpu_offload and job.world.device.type == "cpu":
        yield "--fsdp-cpu-offload has no effect: there is no accelerator to offload from"
    config = tasks_config(params, job.world)
    if job.tasks and job.world.is_first and (words := lost_scores(job.folder.checkpoints, config, job.start.epoch)):
        yield words


def carried_tokenizers(
    params: Params, folder: RunFolder, config: ModelConfig | None, kernel: Kernel | None, resumed: Found | None, restored: str | None
) -> list[Holder]:
    """The tokenizers of the checkpoints that a run begins with. Raises UserError or ValueError where these can't be used."""
    if restored is None:
        return check_first_weights(params, config, kernel) if config and kernel and not params.model.load_pretrained_state else []
    label = f"checkpoint {restored}"
    if params.checkpoint.resume == "latest" and resumed and (folder.path / TOKENIZER).is_file():  # its states may lie elsewhere
        return [(label, load_tokenizer(str(folder.path), (resumed[1].tokenizer or {}).get("eot_id")))]
    return [(label, carried_tokenizer(*outline(restored)))]


def check_first_weights(params: Params, config: ModelConfig, kernel: Kernel) -> list[Holder]:
    """The tokenizers of the weights of --pretrained or --average, none of which is read.

    Raises:
        UserError: they are not there, or of another model.
    """
    with torch.device("meta"):
        model = Transformer(config, kernel)
    problems, holders, flag = Problems(), [], "--pretrained" if params.model.pretrained else "--average"
    for checkpoint in filter(None, (params.model.pretrained, *params.averaging.average)):
        file, path = problems.attempt(outline, checkpoint) or (None, "")
        if file is not None:
            problems.attempt(load_weights, model, file.state_dict, path, file.keys)
        holders.append((f"{flag} {checkpoint}", problems.attempt(carried_tokenizer, file, path) if path else None))
    problems.found = [f"{flag}: {problem}" for problem in problems.found]
    problems.raise_any()
    return holders


def vocabulary_note(job: Job) -> Iterator[str]:
    """Words where a model that begins has a vocabulary that its tokenizer leaves empty for the most part."""
    params, config, tokenizer = job.params, job.config, job.data.tokenizer
    new = not (job.restored or params.model.pretrained or params.averaging.average)
    if new and tokenizer and much_smaller(tokenizer, config.vocab_size):
        unused = (config.vocab_size - tokenizer.vocab_size) * config.hidden_dim * (1 if config.weight_tying else 2)
        yield (
            f"--model {model_name(params.model.model)}: has a vocabulary of {config.vocab_size}, the tokenizer {tokenizer.vocab_size} ids: "
            f"{unused:,} parameters are of no use; give a model.json with vocab_size {-(-tokenizer.vocab_size // 64) * 64}"
        )


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


def find_lineage(
    params: Params, data: TrainData, config: ModelConfig, batch: int, state: RunState | None, tokenizer_compared: bool
) -> Lineage:
    """The plans and batch sizes of the run. Raises ValueError, in words, where it would not go on as it began."""
    about = about_plan(params.data, data)
    if state is None:
        return start_lineage(data.description, batch, config.seq_len, about)
    return resume_lineage(state, data.description, config, batch, params.data.new_data_plan, about, tokenizer_compared)
