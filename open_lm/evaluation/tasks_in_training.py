"""Benchmark tasks inside a training run: a callback that `run` hands to the loop. The model that trains is scored, there is no second one.

A plain model, or each process's replica, scores its share of the batches. A sharded model is only whole while all processes compute
together, and how often it is called depends on the requests; so there every process scores everything. Whatever goes wrong in a task on
any process is known to all before they go on: the task has no score then, and training continues.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from open_lm.evaluation import icl
from open_lm.evaluation.benchmark import Result, grade, load_data_sets
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
    problems: list[str] = []
    try:
        file = read_task_file(url)
    except UserError as error:
        raise UserError([problem.replace("--eval-yaml", "--eval-tasks", 1) for problem in error.problems]) from None
    for task in {task.dataset_uri: task for task in file.tasks}.values():
        try:
            icl.read_rows(task)
        except ValueError as error:
            problems.append(f"--eval-tasks {url}: {error}")
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


class TaskFailed(Exception):
    """A task failed on some process; all processes raise this."""


@dataclass(frozen=True)
class _Checked(Processes):
    """Processes that tell each other of their failures where they would exchange their findings."""

    def merge(self, found: Mapping[int, T]) -> dict[int, T]:
        """As in `Processes`; raises TaskFailed where another process has failed."""
        return {index: value for part in _exchange(found) for index, value in part.items()}


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
        processes = _InStep() if sharded else _Checked(self.config.rank, self.config.world_size)
        options = ScorerOptions(precision=self.config.precision, processes=processes)
        start = time.perf_counter()
        for data in _together(lambda: load_data_sets(task, tokenizer, max_seq_len)):
            if sharded:
                right = _together(lambda data=data: grade(task, data, model, tokenizer, options))  # type: ignore[misc]
            else:
                right = _checked(lambda data=data: grade(task, data, model, tokenizer, options))  # type: ignore[misc]
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


class _InStep(Processes):
    """Processes that all score everything on a sharded model: what the first one generates is what all go on with."""

    def agree(self, choices: list[int]) -> list[int]:
        """The choices of process 0. Logits may differ in their last bits between processes, and each pass needs all of them."""
        return _Checked().merge({torch.distributed.get_rank(): choices})[0]


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


def _together(work: Callable[[], T]) -> T:
    """The result of work that meets no other process, or TaskFailed on every process where it failed on any."""
    done, problem = _attempt(work)
    _exchange(None, problem)
    assert not isinstance(done, _Nothing)
    return done


def _checked(work: Callable[[], T]) -> T:
    """The same of work that calls `_Checked.merge` once; what fails behind that is the same on every process."""
    done, problem = _attempt(work)
    if problem:
        _exchange(None, problem)
    assert not isinstance(done, _Nothing)
    return done


class _Nothing:
    """In the place of what failed."""


def _attempt(work: Callable[[], T]) -> tuple[T | _Nothing, str]:
    """The result, or what went wrong."""
    try:
        return work(), ""
    except TaskFailed:
        raise
    except Exception as error:  # of whatever kind: it is told, and training goes on
        return _Nothing(), f"{type(error).__name__}: {' '.join(str(error).split())}"


def _exchange(mine: T, problem: str = "") -> list[T]:
    """What all processes have, by rank. Raises TaskFailed on every process where any of them has a problem."""
    parts: list[Any] = [(mine, problem)]
    if dist.is_initialized():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (mine, problem))
    problems = [f"process {rank}: {said}" if len(parts) > 1 else said for rank, (_, said) in enumerate(parts) if said]
    if problems:
        raise TaskFailed("; ".join(dict.fromkeys(problems)))
    return [one for one, _ in parts]
