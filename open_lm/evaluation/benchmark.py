"""Tasks on a model: questions in, one `Result` a task out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from open_lm.evaluation import icl
from open_lm.evaluation.scorer import ScorerOptions, score_requests
from open_lm.evaluation.tasks import Task
from open_lm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Result:
    """What one task says of one model."""

    accuracy: float
    """Share of questions answered rightly."""
    questions: int
    seconds: float
    """Wall time, reading and tokenising included."""


def load_questions(task: Task, tokenizer: Tokenizer, max_seq_len: int, limit: int | None = None) -> list[icl.Question]:
    """The questions of a task, or its first `limit`; examples are drawn from the whole data set all the same.

    Args:
        max_seq_len: longest request in tokens, where the task doesn't say.

    Raises:
        ValueError: data that can't be read or don't fit, with file and line.
    """
    rows = icl.read_rows(task)
    prompts = icl.build_prompts(task, rows)[:limit]
    return icl.encode_prompts(prompts, tokenizer, task.max_seq_len or max_seq_len, task.name)


def grade(task: Task, questions: Sequence[icl.Question], model: nn.Module, options: ScorerOptions) -> list[bool]:
    """Whether each question is answered rightly."""
    scores = iter(score_requests(model, [request for question in questions for request in question.requests], options))
    return [icl.is_right(task, question, [next(scores) for _ in question.requests]) for question in questions]


def score_tasks(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    max_seq_len: int,
    options: ScorerOptions,
    limit: int | None = None,
    report: Callable[[str, Result], None] = lambda name, result: None,
) -> dict[str, Result]:
    """Results by task name, in the order of the tasks; `report` hears of each as it is ready."""
    results: dict[str, Result] = {}
    for task in tasks:
        start = time.perf_counter()
        questions = load_questions(task, tokenizer, max_seq_len, limit)
        right = grade(task, questions, model, options)
        results[task.name] = Result(sum(right) / len(right), len(right), time.perf_counter() - start)
        report(task.name, results[task.name])
    return results
