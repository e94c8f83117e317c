"""What validation and tasks need of the options, in a run that trains and in one that doesn't."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace

from open_lm.data.dataset import ValidationSet, check_ids
from open_lm.data.sources import ShardSource
from open_lm.evaluation.in_training import ValidationConfig
from open_lm.evaluation.intervals import IntervalOptions
from open_lm.evaluation.open_tasks import OpenTasks, open_tasks
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.tasks_in_training import TasksConfig
from open_lm.model.config import ModelConfig
from open_lm.params import Params, Problems
from open_lm.params.training import ArchitectureParams
from open_lm.tokenizer import Holder, Tokenizer, check_match
from open_lm.train.parallel import World, autocast_dtype, from_all

ARCHITECTURE = tuple(field.name for field in fields(ArchitectureParams) if field.name != "attn_name")
"""Options that say what a model.json leaves out."""


def as_built(params: Params, config: ModelConfig) -> Params:
    """The options with what the model's configuration says in their place."""
    return replace(params, model=replace(params.model, **{name: getattr(config, name) for name in ARCHITECTURE}))


def find_tasks(params: Params, carried: Tokenizer | None, config: ModelConfig) -> OpenTasks | None:
    """The tasks of --eval-tasks, None without it. Raises UserError with all that is wrong with them."""
    url = params.validation.eval_tasks
    return open_tasks(url, params.data.tokenizer, carried, config.vocab_size, config.seq_len) if url else None


def check_same(problems: Problems, params: Params, tasks: OpenTasks | None) -> None:
    """Add a problem where the processes found different tasks; all call this. None: this one has a problem that is told."""
    url = params.validation.eval_tasks
    if url and len(set(from_all([tasks.digest() if tasks else ""])) - {""}) > 1:
        problems.found.append(f"--eval-tasks {url}: the processes read different data; give all machines the same files")


def check_tokens(
    params: Params,
    checkpoints: Sequence[Holder],
    sources: Sequence[ShardSource],
    sets: Sequence[ValidationSet],
    tasks: OpenTasks | None,
    vocab_size: int | None,
) -> list[Holder]:
    """What has ids in a run, with the tokenizers that made them; a warning where they don't fit and that is allowed.

    Raises:
        UserError: they don't fit together, or have more ids than the model; nothing was started.
    """
    holders = [*checkpoints, *(holder for source in (*sources, *(one.source for one in sets)) for holder in source.holders)]
    holders += [(f"--eval-tasks {params.validation.eval_tasks}", tasks.tokenizer)] if tasks else []
    for note in check_match(holders, params.data.allow_tokenizer_mismatch, vocab_size):
        logging.warning(note)
    if vocab_size is not None:
        check_ids("--train-data" if params.data.train_data else "--dataset-manifest", sources, sets, vocab_size)
    return holders


def tasks_config(params: Params, world: World, once: bool = False) -> TasksConfig:
    """How to score. `once`: at the one place there is."""
    every, epochs = (1, 1) if once else (params.validation.eval_tasks_frequency, params.batch.epochs)
    return TasksConfig(every, epochs, _precision(params), world.rank, world.size)


def validation_config(params: Params, world: World, global_batch_size: int, once: bool = False) -> ValidationConfig:
    """How to validate.

    Args:
        global_batch_size: where --global-val-batch-size says none.
        once: at the one place there is.
    """
    asked = params.validation
    return ValidationConfig(
        every_epochs=1 if once else asked.val_frequency,
        epochs=1 if once else params.batch.epochs,
        global_batch_size=asked.global_val_batch_size or global_batch_size,
        precision=_precision(params),
        workers=params.data.workers,
        rank=world.rank,
        world_size=world.size,
        intervals=IntervalOptions(asked.val_seq_ci, asked.val_tok_ci, asked.val_max_pop_ci, asked.val_iter_ci),
    )


def _precision(params: Params) -> Precision:
    return "fp32" if autocast_dtype(params.parallel) is None else "amp_bfloat16"
