"""Benchmark tasks of the native backend, made of the entries of a YAML in LLM Foundry's layout (`open_lm.evaluation.foundry.entries`).

In: a YAML with `icl_tasks:`. Out: `TaskFile`, one `Task` for every number of few-shot examples. LLM Foundry's other top-level
keys (`model:`, `tokenizer:`, `device_eval_batch_size:`, ...) describe its own run and are left to it, except for `max_seq_len`
and `precision`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from open_lm.evaluation.foundry.entries import ONE_EACH, REQUIRED, Entry, TaskType, is_count, parse_entries, read_yaml
from open_lm.evaluation.precision import Precision
from open_lm.params.fields import nearest

_DEFAULTS: dict[str, Any] = {
    "continuation_delimiter": " ",
    "example_delimiter": "\n",
    "prompt_string": "",
    "question_prelimiter": "",
    "fewshot_random_seed": 1234,
    "max_seq_len": None,
    "cot_delimiter": "",
    "early_stopping_criteria": (),
    "do_normalization": True,
}
# Keys of LLM Foundry that change nothing in the task types scored here, or that have a check of their own.
_MOOT = ("has_categories", "metric_names", "batch_size", "generation_kwargs", "hf_parsing_map", "hf_loading_vars", "prelimiter", *ONE_EACH)


@dataclass(frozen=True)
class Task:
    """One row of the benchmark table: a data set at one number of few-shot examples."""

    label: str
    dataset_uri: str
    icl_task_type: TaskType
    num_fewshot: int = 0
    continuation_delimiter: str = " "
    """Between a question and its answer."""
    example_delimiter: str = "\n"
    """Before every example but the first, and before the question when anything precedes it."""
    prompt_string: str = ""
    """Before everything else."""
    question_prelimiter: str = ""
    """Before every question, those of examples included."""
    fewshot_random_seed: int = 1234
    max_seq_len: int | None = None
    """Longest request in tokens, generated ones included; None leaves it to the file, and then to the model."""
    has_categories: bool = False
    """Each value of the rows' `category` is a data set of its own, with its own examples and its own score."""
    cot_delimiter: str = ""
    """Between a chain of thought and the answer, in examples and in what is generated."""
    early_stopping_criteria: tuple[str, ...] = ()
    """What ends a generated answer; regular expressions when it is cut, as in LLM Foundry."""
    do_normalization: bool = True
    """Whether generated answers are compared without case, punctuation and articles."""
    max_new_tokens: int | None = None
    """Of a generated answer, in place of the length of the longest right one."""
    eos_token_id: int | None = None
    """What ends a generated answer, in place of the tokenizer's end of text."""

    @property
    def name(self) -> str:
        """`<label>/<n>-shot`, as LLM Foundry reports it."""
        return f"{self.label}/{self.num_fewshot}-shot"


@dataclass(frozen=True)
class TaskFile:
    """What a task YAML says."""

    tasks: tuple[Task, ...]
    max_seq_len: int | None
    """Longest request where a task doesn't say; None: the model's seq_len."""
    precision: Precision


def read_task_file(url: str) -> TaskFile:
    """The tasks of a YAML file or URL, their data located.

    Raises:
        UserError: every problem of the file, missing data files included.
    """
    return parse_task_file(read_yaml(url), url)


def parse_task_file(content: object, url: str) -> TaskFile:
    """The tasks of a YAML's content; `url` names the file and is where relative data may lie. Raises UserError."""
    file = parse_entries(content, url, _problems)
    return TaskFile(tuple(task for entry in file.entries for task in _tasks(entry)), file.max_seq_len, file.precision)


def _tasks(entry: Entry) -> list[Task]:
    """One task for each number of examples."""
    values = {key: entry.others.get(key, default) for key, default in _DEFAULTS.items()}
    values["question_prelimiter"] = entry.others.get("prelimiter", "")
    values["early_stopping_criteria"] = tuple(values["early_stopping_criteria"])
    values |= {"has_categories": entry.has_categories, **entry.others.get("generation_kwargs", {})}
    return [Task(entry.label, entry.dataset_uri, entry.icl_task_type, num_fewshot=n, **values) for n in entry.num_fewshot]


def _problems(values: Mapping[str, Any], kind: str, where: str) -> list[str]:
    """What LLM Foundry itself says of an element in its own environment, and what this scorer can't do yet."""
    known = (*REQUIRED, *_DEFAULTS, *_MOOT)
    problems = [f"{where}: unknown key {key}.{nearest(key, known)}" for key in values if key not in known]
    if values["dataset_uri"].startswith("hf://"):
        problems.append(f"{where}: dataset_uri {values['dataset_uri']}: hf:// is not built yet; give a jsonl file")
    return problems + _mistyped({key: value for key, value in values.items() if key in (*_DEFAULTS, "prelimiter")}, where)


def _mistyped(values: Mapping[str, Any], where: str) -> list[str]:
    problems = []
    for key, value in values.items():
        default = _DEFAULTS["question_prelimiter" if key == "prelimiter" else key]
        if isinstance(default, str) and not isinstance(value, str):
            problems.append(f"{where}: {key} {value!r}: give text in quotes")
        elif key == "fewshot_random_seed" and not is_count(value, 0):
            problems.append(f"{where}: {key} {value!r}: give a whole number")
        elif isinstance(default, bool) and not isinstance(value, bool):
            problems.append(f"{where}: {key} {value!r}: give true or false")
        elif key == "early_stopping_criteria":
            problems += _unusable_stops(value, where)
        elif key == "max_seq_len" and not is_count(value, 2):
            problems.append(f"{where}: {key} {value!r}: give a whole number of at least 2")
    return problems


def _unusable_stops(value: object, where: str) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) and text for text in value):
        return [f"{where}: early_stopping_criteria {value!r}: give a list of texts in quotes"]
    try:
        re.compile("|".join(value))
    except re.error as error:
        return [f"{where}: early_stopping_criteria {value!r}: LLM Foundry takes them as regular expressions, and this is none: {error}"]
    return []
