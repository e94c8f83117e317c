"""Tasks on a model: questions in, one `Result` a task out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from open_lm.evaluation import answers, icl
from open_lm.evaluation.result import Result, notice
from open_lm.evaluation.scorer import ScorerOptions, score_requests
from open_lm.evaluation.tasks import Task
from open_lm.params.fields import Problems
from open_lm.progress import Progress
from open_lm.tokenizer import Tokenizer


@dataclass(frozen=True)
class DataSet:
    """The questions of a task, or of one of its categories, as token ids."""

    name: str
    """`<label>/<n>-shot`, with categories `<label>/<n>-shot/<category>`."""
    questions: list[icl.Question]
    max_new_tokens: int = 0
    """Of a generated answer; 0 where none is generated."""
    notice: str = field(default="", compare=False)
    """What the name doesn't say of it, in one line."""


def load_data_sets(task: Task, tokenizer: Tokenizer, max_seq_len: int, limit: int | None = None) -> Iterator[DataSet]:
    """The data sets of a task, or the first `limit` questions of each; examples are drawn from the whole data set all the same.

    Args:
        max_seq_len: longest request in tokens, generated ones included, where the task doesn't say.

    Raises:
        ValueError: data that can't be read or don't fit, with file and line.
    """
    for name, rows in icl.by_category(task, icl.read_rows(task)).items():
        yield _encode(task, name, rows, tokenizer, max_seq_len, limit)


def data_problems(tasks: Iterable[Task]) -> list[str]:
    """What is wrong with the rows of the tasks' data, one line for each data set that can't be used."""
    problems = Problems()
    for task in {task.dataset_uri: task for task in tasks}.values():
        problems.attempt(icl.read_rows, task)
    return problems.found


def _encode(task: Task, name: str, rows: Sequence[icl.Row], tokenizer: Tokenizer, max_seq_len: int, limit: int | None) -> DataSet:
    generated = answers.answer_length(task, rows, tokenizer) if task.icl_task_type == "generation_task_with_answers" else 0
    prompts = icl.build_prompts(task, rows)[:limit]
    masked = tokenizer.pad_id if generated else None
    length = task.max_seq_len or max_seq_len
    if generated >= length:
        raise ValueError(f"{name}: max_seq_len {length}: no room for an answer of {generated} tokens; raise it")
    longest = (task.max_new_tokens or generated) if generated else 0  # LLM Foundry makes room for the longest right answer all the same
    questions = icl.encode_prompts(prompts, tokenizer, length - generated, name, masked)
    said = notice(name, task.num_fewshot, len(rows), sum(one.cut for one in questions), len(questions), length)
    return DataSet(name, questions, longest, said)


def grade(task: Task, data: DataSet, model: nn.Module, tokenizer: Tokenizer, options: ScorerOptions) -> list[bool]:
    """Whether each question is answered rightly."""
    if data.max_new_tokens:
        texts = answers.generate_answers(model, tokenizer, task, data.questions, data.max_new_tokens, options)
        return [answers.is_right_answer(task, text, one.aliases) for text, one in zip(texts, data.questions, strict=True)]
    scores = iter(score_requests(model, [request for question in data.questions for request in question.requests], options, data.name))
    return [icl.is_right(task, question, [next(scores) for _ in question.requests]) for question in data.questions]


def score_tasks(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    max_seq_len: int,
    options: ScorerOptions,
    limit: int | None = None,
    report: Callable[[str, Result], None] = lambda name, result: None,
    tell: Callable[[str], None] = lambda line: None,
    done: Callable[[Task, dict[str, Result]], None] = lambda task, results: None,
) -> dict[str, Result]:
    """Results by name of the data set, in the order of the tasks; `report` hears of each as it is ready, `tell` the notices, `done` of
    each whole task.
    """
    results: dict[str, Result] = {}
    with Progress("tasks", len(tasks), "tasks") as shown:
        for task in tasks:
            start, found = time.perf_counter(), dict[str, Result]()
            for data in load_data_sets(task, tokenizer, max_seq_len, limit):
                if data.notice:
                    tell(data.notice)
                right = grade(task, data, model, tokenizer, options)
                now = time.perf_counter()
                found[data.name] = Result(sum(right) / len(right), len(right), now - start)
                report(data.name, found[data.name])
                start = now
            results |= found
            done(task, found)
            shown.done += 1
    return results
