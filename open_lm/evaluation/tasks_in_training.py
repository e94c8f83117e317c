"""Benchmark tasks inside a training run: a callback that `run` hands to the loop. The model that trains is scored, there is no second one.

A plain model, or each process's replica, scores its share of the batches. A sharded model is only whole while all processes compute
together, and how often it is called depends on the requests; so there every process scores everything. Whatever goes wrong in a task on
any process is known to all before they go on (`in_step`): the task has no score then, and training continues.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from open_lm.evaluation import in_step
from open_lm.evaluation.benchmark import Result, data_problems, grade, load_data_sets
from open_lm.evaluation.in_step import TaskFailed, exchange
from open_lm.evaluation.in_training import Place, drop_after
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.processes import Processes
from open_lm.evaluation.scorer import ScorerOptions
from open_lm.evaluation.table import standard_error
from open_lm.evaluation.tasks import Task, TaskFile, read_task_file
from open_lm.params.fields import UserError
from open_lm.tokenizer import Tokenizer, choose_tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class OpenTasks:
    """The tasks of --eval-tasks, and the tokenizer of the model."""

    file: TaskFile
    tokenizer: Tokenizer


def open_tasks(url: str, named: str | None, carried: Tokenizer | None, vocab_size: int) -> OpenTasks:
    """The tasks of a YAML, every row of their data looked at.

    Args:
        named: value of --tokenizer.
        carried: the tokenizer of the shards or the checkpoint.

    Raises:
        UserError: with every problem found.
    """
    try:
        file = read_task_file(url)
    except UserError as error:
        raise UserError([problem.replace("--eval-yaml", "--eval-tasks", 1) for problem in error.problems]) from None
    problems = [f"--eval-tasks {url}: {problem}" for problem in data_problems(file.tasks)]
    try:
        tokenizer = choose_tokenizer(named, carried, vocab_size)
    except ValueError as error:
        raise UserError([*problems, f"--eval-tasks {url}: {error}"]) from None
    if problems:
        raise UserError(problems)
    return OpenTasks(file, tokenizer)


@dataclass(frozen=True)
class TasksConfig:
    """How to score: every how many of how many epochs, longest request where the file says none, in which arithmetic, by whom."""

    every_epochs: int
    epochs: int
    seq_len: int
    precision: Precision
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class _Checked(Processes):
    """Processes that tell each other of their failures where they would exchange their findings."""

    def merge(self, found: Mapping[int, T]) -> dict[int, T]:
        """As in `Processes`; raises TaskFailed where another process has failed."""
        return {index: value for part in exchange(found) for index, value in part.items()}


class TasksInTraining:
    """After each epoch that is due: the accuracy of every task into the log, `eval_tasks.jsonl` and `tell`."""

    def __init__(
        self,
        model: nn.Module,
        tasks: OpenTasks,
        config: TasksConfig,
        folder: Path,
        tell: Callable[[Mapping[str, Any], int], None],
        start_step: int | None = 0,
        checkpoint: str | None = None,
    ):
        """What is scored, and where it is told.

        Args:
            tell: takes the accuracies by name, `<label>/<n>-shot`, and the step.
            start_step, checkpoint: as in `InTraining`.
        """
        self.model, self.tasks, self.config, self.tell, self.checkpoint = model, tasks, config, tell, checkpoint
        self.folder, self.path = folder, folder / "eval_tasks.jsonl"
        if config.rank == 0 and start_step is not None:
            drop_after(self.path, start_step)

    def after_step(self, position: Place, result: Any) -> None:
        """Nothing: tasks are scored at epoch ends."""

    def after_epoch(self, position: Place) -> None:
        """Score where it is due."""
        config = self.config
        if position.epoch % config.every_epochs and position.epoch != config.epochs:
            return
        results: dict[str, Result] = {}
        failed: dict[str, str] = {}
        with _ready(self.model) as model:
            for task in self.tasks.file.tasks:
                try:
                    for name, result in self._score(task, model):
                        results[name] = result
                        logging.info(
                            f"Task after epoch {position.epoch}: {name}: accuracy {result.accuracy:.4f} "
                            f"({result.questions} questions, {result.seconds:.1f} s)"
                        )
                except TaskFailed as error:
                    failed[task.name] = str(error)
                    logging.warning(
                        f"Task after epoch {position.epoch}: {task.name} failed, and the run goes on without its score: {error}"
                    )
        if config.rank == 0:
            self._write(position, results, failed)
            self.tell({name: result.accuracy for name, result in results.items()}, position.step)

    def _score(self, task: Task, model: nn.Module) -> Iterator[tuple[str, Result]]:
        """Name and result of each data set of a task. Raises TaskFailed, on every process."""
        max_seq_len = self.tasks.file.max_seq_len or self.config.seq_len
        tokenizer = self.tasks.tokenizer
        sharded = isinstance(model, FSDPModule)
        processes = Processes() if sharded else _Checked(self.config.rank, self.config.world_size)
        options = ScorerOptions(precision=self.config.precision, processes=processes)
        start = time.perf_counter()
        data_sets = in_step.together(lambda: load_data_sets(task, tokenizer, max_seq_len))
        in_step.alike(data_sets)
        for data in data_sets:
            work = partial(grade, task, data, model, tokenizer, options)
            right = in_step.sharded(model, work) if sharded else in_step.checked(work)
            now = time.perf_counter()
            yield data.name, Result(sum(right) / len(right), len(right), now - start)
            start = now

    def _write(self, position: Place, results: Mapping[str, Result], failed: Mapping[str, str]) -> None:
        line = {
            "step": position.step,
            "epoch": position.epoch,
            "train_tokens": position.tokens,
            "checkpoint_path": self.checkpoint or str(self.folder / f"epoch_{position.epoch}.pt"),
            "results": {
                name: {
                    "accuracy": one.accuracy,
                    "questions": one.questions,
                    "seconds": round(one.seconds, 3),
                    "stderr": standard_error(one.accuracy, one.questions),
                }
                for name, one in results.items()
            },
            "failed": failed,
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def before_end(self, position: Place, ending: Any) -> None:
        """Nothing: a run that goes on later is scored then."""

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def _ready(model: nn.Module) -> Iterator[nn.Module]:
    """The model to score, in eval mode and without compiling for every length; after it everything is as before."""
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    was_training = plain.training
    plain.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield plain
    finally:
        plain.train(was_training)
        for module in plain.modules():
            if isinstance(module, FSDPModule):  # a forward pass without a backward pass leaves some weights gathered
                module.reshard()
