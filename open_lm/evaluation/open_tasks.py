"""The tasks of --eval-tasks before a run begins: the YAML read, the tokenizer chosen, every request encoded once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from open_lm.evaluation.benchmark import data_problems, load_data_sets
from open_lm.evaluation.packed import PackedDataSet
from open_lm.evaluation.tasks import Task, TaskFile, read_task_file
from open_lm.params.fields import UserError
from open_lm.progress import Progress
from open_lm.tokenizer import Tokenizer, choose_tokenizer


@dataclass(frozen=True)
class OpenTasks:
    """Tasks with their data, as the model will read them."""

    tasks: tuple[Task, ...]
    data: tuple[tuple[PackedDataSet, ...], ...]
    """Of each task: one set, or with categories one for each."""
    tokenizer: Tokenizer
    notices: tuple[str, ...] = ()
    """What is to be said of the data sets, a line each."""

    def __iter__(self) -> Iterator[tuple[Task, tuple[PackedDataSet, ...]]]:
        return zip(self.tasks, self.data, strict=True)

    def digest(self) -> str:
        """The same on all processes that score the same."""
        return hashlib.sha256("".join(one.digest() for sets in self.data for one in sets).encode()).hexdigest()


def open_tasks(url: str, named: str | None, carried: Tokenizer | None, vocab_size: int, seq_len: int) -> OpenTasks:
    """The tasks of a YAML.

    Args:
        named: value of --tokenizer.
        carried: the tokenizer of the shards or the checkpoint; whether the named one fits to it is not asked here.
        seq_len: longest request where neither the task nor the file says.

    Raises:
        UserError: with every problem found.
    """
    try:
        file = read_task_file(url)
    except UserError as error:
        raise UserError([problem.replace("--eval-yaml", "--eval-tasks", 1) for problem in error.problems]) from None
    try:
        tokenizer = choose_tokenizer(named, carried, vocab_size, allow_mismatch=True)
    except ValueError as error:
        raise UserError([f"--eval-tasks {url}: {problem}" for problem in (*data_problems(file.tasks), str(error))]) from None
    return encode_tasks(file, tokenizer, seq_len, url)


def encode_tasks(file: TaskFile, tokenizer: Tokenizer, seq_len: int, url: str = "") -> OpenTasks:
    """The same of a YAML that was read. Raises UserError."""
    problems: list[str] = []
    data: list[tuple[PackedDataSet, ...]] = []
    notices: dict[str, None] = {}
    for task in Progress("encoding", len(file.tasks), "tasks").over(file.tasks):
        try:
            sets = []
            for one in load_data_sets(task, tokenizer, file.max_seq_len or seq_len):
                sets.append(PackedDataSet.of(one))
                notices |= {f"--eval-tasks {url}: {one.notice}": None} if one.notice else {}
            data.append(tuple(sets))
        except ValueError as error:
            problems.append(f"--eval-tasks {url}: {error}")
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    return OpenTasks(file.tasks, tuple(data), tokenizer, tuple(notices))
