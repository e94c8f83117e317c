"""A run before it begins: its options, files and folder checked, its data opened; everything that is known before the model is built."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import IO

import torch

from open_lm import __version__
from open_lm.checkpoint.epoch_pair import place_in_data
from open_lm.checkpoint.find import Found
from open_lm.checkpoint.load import outline
from open_lm.checkpoint.run_state import RunState
from open_lm.checkpoint.weights import load_weights
from open_lm.data.access import access_of
from open_lm.data.dataset import TrainData, ValidationSet, build_train_data, build_validation_data
from open_lm.data.loader import LoaderShape, allowed_processes, check_processes
from open_lm.data.masks import Masks
from open_lm.data.plans_file import about_plan
from open_lm.data.source_names import source_names
from open_lm.evaluation.open_tasks import OpenTasks
from open_lm.model.attention import Kernel, get_kernel
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.model.zoo import get_model_config
from open_lm.params import Params, Problems
from open_lm.params.fields import counted
from open_lm.scoring import check_same, find_tasks
from open_lm.train.launcher import sign_lock, was_ours
from open_lm.train.loop import Position
from open_lm.train.parallel import World, from_all, from_first
from open_lm.train.remote_folder import RemoteFolder
from open_lm.train.remote_resume import check_copy, clear_copy
from open_lm.train.resume import Lineage, as_restarted, check_rest, epochs_complete, resume_lineage, start_lineage
from open_lm.train.run_folder import RunFolder, check_places, choose_run_folder, claim_run_folder, refuse_existing
from open_lm.train.schedule import RunLength, global_batch_size, run_length
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
            *self.data.length_lines(length.sequences_per_epoch, shape.start, shape.stop or 0),
            f"This run goes on with {', '.join([*map(str, fewer), counted(most, 'process')])} "
            "(what divides the global batch size and the streams) and any number of --workers",
            *(self.tasks.notices if self.tasks else ()),
            f"{counted(length.total_steps, 'step')} of {counted(length.global_batch_size, 'sequence')} of {self.config.seq_len} tokens "
            f"in {counted(length.epochs, 'epoch')}",
        )


def prepare(params: Params, world: World, claim: bool = True) -> Job:
    """Check options, files and folder, open the data and `claim` the folder. Raises UserError with every problem found."""
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
    flags = {name: getattr(params.model, name) for name in ("model_norm", "ffn_type", "qk_norm", "positional_embedding_type")}
    config = problems.attempt(get_model_config, params.model.model, flags)
    if remote and world.is_first:
        problems.attempt(check_copy, remote, params.log.overwrite, resuming)
    kernel = problems.attempt(get_kernel, params.model.attn_name)
    if config and kernel and restored is None and world.is_first and not params.model.load_pretrained_state:
        problems.attempt(check_first_weights, params, config, kernel)
    batch = problems.attempt(global_batch_size, params.batch, world.size)
    # files are looked at even where model or batch are wrong, so that all mistakes are told at once
    sizes = {"seq_len": config.seq_len if config else 1, "vocab_size": config.vocab_size if config else 1 << 32}
    saved = resumed[1].plan if resumed else {}
    asked = replace(params.data, data_streams=params.data.data_streams or saved.get("streams"))
    data = problems.attempt(build_train_data, asked, global_batch_size=batch or world.size, saved=saved, **sizes)
    access = problems.attempt(access_of, params.data)
    validation = problems.attempt(build_validation_data, params.validation, tokenizer=params.data.tokenizer, access=access, **sizes)
    length = lineage = masks = tasks = None
    if config and data:
        tasks = problems.attempt(find_tasks, params, data.tokenizer, config)
        masks = problems.attempt(
            Masks.of, params.data, config.vocab_size, {s.files.eot_id for s in data.sources if s.files.eot_id is not None}
        )
    if config and batch and data:
        problems.attempt(check_processes, world.size, batch, data.streams)
        resumed = (resumed[0], place_in_data(resumed[1], batch, config.seq_len)) if resumed else None
        lineage = problems.attempt(find_lineage, params, data, config, batch, resumed[1] if resumed else None)
    if config and batch and data and lineage:
        length = problems.attempt(choose_length, params, data, config.seq_len, batch, lineage, resumed[1] if resumed else None)
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
    return Job(params, world, folder, config, kernel, data, masks, validation, length, lineage, resumed, restored, lock, remote, tasks)


def _raise_any(problems: Problems, lock: IO[str] | None) -> None:
    """On every process, what any found; the folder is then free for the next command."""
    problems.found = from_all(problems.found)
    if problems.found and lock:
        lock.close()
    problems.raise_any()


def check_first_weights(params: Params, config: ModelConfig, kernel: Kernel) -> None:
    """Raises UserError where the weights of --pretrained or --average are not there, or of another model; none of them is read."""
    with torch.device("meta"):
        model = Transformer(config, kernel)
    problems = Problems()
    for checkpoint in (params.model.pretrained, *params.averaging.average):
        file, path = (checkpoint and problems.attempt(outline, checkpoint)) or (None, "")
        if file is not None:
            problems.attempt(load_weights, model, file.state_dict, path, file.keys)
    flag = "--pretrained" if params.model.pretrained else "--average"
    problems.found = [f"{flag}: {problem}" for problem in problems.found]
    problems.raise_any()


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
