"""Benchmark tasks inside a training run: a callback that `run` hands to the loop. The model that trains is scored, there is no second one.

Each process scores its share of the batches, also of a sharded model, which is only whole while all compute together. Whatever goes wrong
in a task on any process is known to all before they go on (`in_step`): the task has no score then, and training continues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from open_lm.checkpoint.sharded import reshard
from open_lm.evaluation.benchmark import grade
from open_lm.evaluation.in_step import InStep, TaskFailed
from open_lm.evaluation.in_training import Beside, Place
from open_lm.evaluation.open_tasks import OpenTasks
from open_lm.evaluation.packed import PackedDataSet
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.processes import Processes
from open_lm.evaluation.result import Result
from open_lm.evaluation.scorer import ScorerOptions
from open_lm.evaluation.table import cells_of, result_json, whole_task
from open_lm.evaluation.tasks import Task
from open_lm.params.fields import counted
from open_lm.progress import Progress
from open_lm.storage.json_lines import add_line, drop_after, read_lines

T = TypeVar("T")
FILE = "eval_tasks.jsonl"
_ASKED = "not scored: the run was asked to end"


@dataclass(frozen=True)
class TasksConfig:
    """How to score: every how many of how many epochs, in which arithmetic, by whom."""

    every_epochs: int
    epochs: int
    precision: Precision
    rank: int = 0
    world_size: int = 1

    def due(self, epoch: int) -> bool:
        """Whether tasks are scored at the end of an epoch."""
        return epoch % self.every_epochs == 0 or epoch == self.epochs


@dataclass(frozen=True)
class _Company(Processes):
    """Processes that tell each other of their failures where they would exchange their findings."""

    step: InStep | None = None
    progress: Callable[[], None] = lambda: None

    def share(self, batches: Sequence[T]) -> Iterator[T]:
        """As in `Processes`."""
        for batch in super().share(batches):
            self.progress()
            yield batch

    def merge(self, found: Mapping[int, T]) -> dict[int, T]:
        """As in `Processes`; raises TaskFailed where another process has failed."""
        assert self.step
        return self.step.merge(found)


def lost_scores(folder: Path, config: TasksConfig, epochs: int) -> str | None:
    """Words for the log where `eval_tasks.jsonl` lacks epochs that are complete, such as those of a run that was killed while it scored."""
    lines = [line for line in read_lines(folder / FILE) if isinstance(line, dict)]
    told = {line.get("epoch") for line in lines if _ASKED not in line.get("failed", {}).values()}
    lost = [epoch for epoch in range(1, epochs + 1) if config.due(epoch) and epoch not in told]
    if not lost:
        return None
    files = ", ".join(f"epoch_{epoch}.pt" for epoch in lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
    return f"{folder / FILE}: lacks the scores of {files}; eval/eval_openlm_ckpt.py --checkpoint makes them from the saved weights"


class TasksInTraining:
    """After each epoch that is due: the accuracy of every task into the log, `eval_tasks.jsonl` and `tell`."""

    def __init__(
        self,
        model: nn.Module,
        tasks: OpenTasks,
        config: TasksConfig,
        folder: Path,
        tell: Callable[[Mapping[str, Any], int], None],
        start: Place | None = None,
        checkpoint: str | None = None,
        beside: Beside | None = None,
    ):
        """What is scored, and where it is told.

        Args:
            tell: takes the accuracies by name, `<label>/<n>-shot`, and the step.
            start: where the run goes on; what `eval_tasks.jsonl` has of later steps is removed.
            checkpoint: what the weights are from, where that is not the epoch_N.pt of the epoch.
            beside: the run around it.
        """
        self.model, self.tasks, self.config, self.tell, self.checkpoint = model, tasks, config, tell, checkpoint
        self.folder, self.path = folder, folder / FILE
        self.beside = beside or Beside()
        self.step = InStep(self.beside.progress)
        if config.rank == 0 and start is not None:
            drop_after(self.path, start.step)

    def after_step(self, position: Place, result: Any) -> None:
        """Nothing: tasks are scored at epoch ends."""

    def after_epoch(self, position: Place) -> None:
        """Score where it is due."""
        config, where = self.config, f"Task after epoch {position.epoch}"
        if not config.due(position.epoch):
            return
        results: dict[str, Result] = {}
        failed: dict[str, str] = {}
        with _ready(self.model) as model, Progress("tasks", len(self.tasks.tasks), "tasks") as shown:
            for shown.done, (task, data) in enumerate(self.tasks):
                try:
                    results |= self._score_task(task, data, model, where)
                except _Asked:
                    failed[task.name] = _ASKED
                    logging.warning(f"{where}: {task.name} {_ASKED}")
                except TaskFailed as error:
                    failed[task.name] = str(error)
                    logging.warning(f"{where}: {task.name} failed, and the run goes on without its score: {error}")
        if config.rank == 0:
            rows = self._rows(results)
            self._write(position, rows, failed)
            self.tell({name: row["accuracy"] for name, row in rows.items()}, position.step)

    def _score_task(self, task: Task, sets: Sequence[PackedDataSet], model: nn.Module, where: str) -> dict[str, Result]:
        """Of each data set of a task. Raises TaskFailed, and _Asked where any process was asked to end, both on every process."""
        company = _Company(self.config.rank, self.config.world_size, self.step, self.beside.progress)
        options = ScorerOptions(precision=self.config.precision, processes=company)
        results: dict[str, Result] = {}
        for packed in sets:
            if any(self.step.exchange(self.beside.asked())):
                raise _Asked
            start = time.perf_counter()
            right = self.step.checked(model, partial(self._grade, task, packed, model, options))
            one = results[packed.name] = Result(sum(right) / len(right), len(right), time.perf_counter() - start)
            logging.info(f"{where}: {packed.name}: {_words(one)}")
        for name, whole in self._rows(results).items():
            if name not in results:
                logging.info(f"{where}: {name}: {_words(Result(whole['accuracy'], whole['questions'], whole['seconds']))}")
        return results

    def _grade(self, task: Task, packed: PackedDataSet, model: nn.Module, options: ScorerOptions) -> list[bool]:
        return grade(task, packed.unpack(), model, self.tasks.tokenizer, options)

    @staticmethod
    def _rows(results: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
        """Plain values by name; a task with categories is one row, before theirs."""
        rows = {}
        for name, cell in cells_of(results).items():
            parts = [one for part, one in results.items() if name in (part, whole_task(part))]
            rows[name] = result_json(Result(cell.accuracy, cell.questions or 0, sum(one.seconds for one in parts)), cell.stderr)
        return rows

    def _write(self, position: Place, rows: Mapping[str, Any], failed: Mapping[str, str]) -> None:
        checkpoint = self.checkpoint or str(self.folder / f"epoch_{position.epoch}.pt")
        line = {"step": position.step, "epoch": position.epoch, "train_tokens": position.tokens, "checkpoint_path": checkpoint}
        add_line(self.path, {**line, "results": rows, "failed": failed})

    def before_end(self, position: Place, ending: Any) -> None:
        """Nothing: a run that goes on later is scored then."""

    def close(self) -> None:
        """Nothing is held."""


class _Asked(Exception):
    """The run was asked to end."""


def _words(result: Result) -> str:
    return f"accuracy {result.accuracy:.4f} ({counted(result.questions, 'question')}, {result.seconds:.1f} s)"


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
        reshard(plain)
