"""Benchmark tasks as LLM Foundry's YAML files list them, and where their data lie.

In: a YAML with `icl_tasks:`. Out: `TaskFile`, one `Task` for every number of few-shot examples. LLM Foundry's other top-level
keys (`model:`, `tokenizer:`, `device_eval_batch_size:`, ...) describe its own run and are left to it, except for `max_seq_len`
and `precision`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from open_lm import storage
from open_lm.evaluation.precision import FOUNDRY_NAMES, Precision
from open_lm.params.fields import UserError, nearest

TaskType = Literal["multiple_choice", "schema", "language_modeling", "generation_task_with_answers"]

METRICS: dict[str, str] = {
    "multiple_choice": "InContextLearningMultipleChoiceAccuracy",
    "schema": "InContextLearningMultipleChoiceAccuracy",
    "language_modeling": "InContextLearningLMAccuracy",
    "generation_task_with_answers": "InContextLearningGenerationExactMatchAccuracy",
}
OLD_NAMES: dict[str, TaskType] = {"question_answering": "generation_task_with_answers"}
OLD_METRICS = {"InContextLearningQAAccuracy": "InContextLearningGenerationExactMatchAccuracy"}
_DEFAULTS: dict[str, Any] = {
    "continuation_delimiter": " ",
    "example_delimiter": "\n",
    "prompt_string": "",
    "question_prelimiter": "",
    "fewshot_random_seed": 1234,
    "max_seq_len": None,
    "has_categories": False,
    "cot_delimiter": "",
    "early_stopping_criteria": (),
    "do_normalization": True,
}
_REQUIRED = ("label", "dataset_uri", "num_fewshot", "icl_task_type")
# Keys of LLM Foundry that change nothing in the task types scored here, or that have a check of their own.
_MOOT = (
    "metric_names", "batch_size", "pass_at_k", "num_beams", "generations_per_sample", "generation_kwargs", "hf_parsing_map",
    "hf_loading_vars", "prelimiter",
)  # fmt: skip


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
    import yaml

    try:
        content = yaml.safe_load(storage.read_bytes(url))
    except FileNotFoundError:
        raise UserError([f"--eval-yaml {url}: no such file; give a YAML with `icl_tasks:`"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError([f"--eval-yaml {url}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    return parse_task_file(content, url)


def parse_task_file(content: object, url: str) -> TaskFile:
    """The tasks of a YAML's content; `url` names the file and is where relative data may lie. Raises UserError."""
    where = f"--eval-yaml {url}"
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(entries, list) or not entries:
        hint = nearest("icl_tasks", map(str, content)) if isinstance(content, dict) and "icl_tasks" not in content else ""
        raise UserError([f"{where}: must hold a list `icl_tasks:` of tasks.{hint}"])
    problems: list[str] = []
    tasks: list[Task] = []
    for number, entry in enumerate(entries, 1):
        found, wrong = _parse_entry(entry, f"{where}: task {number}")
        located, missing = _locate(found, url)
        tasks += located
        problems += wrong + missing
    problems += _repeated(tasks, where)
    max_seq_len = content.get("max_seq_len")
    if max_seq_len is not None and not _is_count(max_seq_len, 2):
        problems.append(f"{where}: max_seq_len {max_seq_len}: give a whole number of at least 2")
    precision = str(content.get("precision") or "fp32")
    if precision not in FOUNDRY_NAMES:
        problems.append(f"{where}: precision {precision}: choose one of {', '.join(FOUNDRY_NAMES)}")
    if problems:
        raise UserError(problems)
    return TaskFile(tuple(tasks), max_seq_len, FOUNDRY_NAMES[precision])


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _parse_entry(entry: object, where: str) -> tuple[list[Task], list[str]]:
    """One entry of `icl_tasks:` as tasks, and its problems."""
    if not isinstance(entry, dict):
        return [], [f"{where}: must hold `key: value` pairs"]
    where = f"{where} ({entry['label']})" if entry.get("label") else where
    known = (*_REQUIRED, *_DEFAULTS, *_MOOT)
    problems = [f"{where}: unknown key {key}.{nearest(str(key), known)}" for key in entry if key not in known]
    missing = [key for key in _REQUIRED if entry.get(key) is None]
    if missing:
        return [], [*problems, f"{where}: lacks {', '.join(missing)}"]
    problems += _unsupported(entry, where)
    entry = {**entry, "question_prelimiter": entry["prelimiter"]} if entry.get("prelimiter") is not None else entry
    values = {key: entry[key] if entry.get(key) is not None else default for key, default in _DEFAULTS.items()}
    problems += _mistyped(values, where)
    shots = entry["num_fewshot"] if isinstance(entry["num_fewshot"], list) else [entry["num_fewshot"]]
    if not shots or not all(_is_count(n, 0) for n in shots):
        problems.append(f"{where}: num_fewshot {entry['num_fewshot']}: give whole numbers, such as [0, 10]")
    if problems:
        return [], problems
    values["early_stopping_criteria"] = tuple(values["early_stopping_criteria"])
    task_type = cast(TaskType, OLD_NAMES.get(entry["icl_task_type"], entry["icl_task_type"]))
    return [Task(str(entry["label"]), str(entry["dataset_uri"]), task_type, num_fewshot=n, **values) for n in shots], []


def _unsupported(entry: Mapping[Any, Any], where: str) -> list[str]:
    """What LLM Foundry can do and this scorer can't yet."""
    kind = str(entry["icl_task_type"])
    kind = OLD_NAMES.get(kind, kind)
    if kind == "code_evaluation":
        return [f"{where}: icl_task_type {kind} would run what a model wrote, so it is not scored here; leave the task out"]
    if kind not in METRICS:
        return [f"{where}: icl_task_type {kind}: choose one of {', '.join(METRICS)}.{nearest(kind, METRICS)}"]
    problems = []
    if entry.get("prelimiter") is not None and entry.get("question_prelimiter") is not None:
        problems.append(f"{where}: prelimiter and question_prelimiter: two names of one thing, give one of them")
    if kind == "generation_task_with_answers" and entry.get("generation_kwargs"):
        problems.append(f"{where}: generation_kwargs {entry['generation_kwargs']}: answers are generated greedily; leave the key out")
    if str(entry["dataset_uri"]).startswith("hf://"):
        problems.append(f"{where}: dataset_uri {entry['dataset_uri']}: hf:// is not built yet; give a jsonl file")
    names = [OLD_METRICS.get(name, name) for name in entry.get("metric_names") or ()]
    if names and METRICS[kind] not in names:
        problems.append(f"{where}: metric_names {names}: only {METRICS[kind]} is computed for {kind}")
    return problems


def _mistyped(values: Mapping[str, Any], where: str) -> list[str]:
    problems = []
    for key, default in _DEFAULTS.items():
        value = values[key]
        if isinstance(default, str) and not isinstance(value, str):
            problems.append(f"{where}: {key} {value!r}: give text in quotes")
        elif key == "fewshot_random_seed" and not _is_count(value, 0):
            problems.append(f"{where}: {key} {value!r}: give a whole number")
        elif isinstance(default, bool) and not isinstance(value, bool):
            problems.append(f"{where}: {key} {value!r}: give true or false")
        elif key == "early_stopping_criteria":
            problems += _unusable_stops(value, where)
        elif key == "max_seq_len" and value is not None and not _is_count(value, 2):
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


def _locate(tasks: list[Task], url: str) -> tuple[list[Task], list[str]]:
    """Tasks with the data's path as found, and the problem where there is none."""
    if not tasks:
        return [], []
    uri = tasks[0].dataset_uri
    found = locate(uri, url)
    if found is None:
        beside = storage.join(storage.parent(url), uri)
        places = "the working folder" if uri == beside else f"the working folder or as {beside}"
        what = f"--eval-yaml {url}: {tasks[0].label}: dataset_uri {uri}: no such file in {places}"
        return [], [f"{what}; correct it or put the data there{fetched(uri)}"]
    return [replace(task, dataset_uri=found) for task in tasks], []


def locate(uri: str, url: str) -> str | None:
    """Where the data of a task lie: from the working folder, else beside the YAML; there also without the `eval/` of a file that was made
    for the folder above.
    """
    folder = storage.parent(url)
    places = (uri, storage.join(folder, uri), storage.join(folder, uri.removeprefix("eval/")))
    return next((path for path in dict.fromkeys(places) if storage.exists(path)), None)


def fetched(uri: str) -> str:
    """Where data come from that lie in LLM Foundry's layout, for a message that they are not there."""
    return " (download_data.py fetches local_data/)" if uri.startswith("local_data/") else ""


def _repeated(tasks: list[Task], where: str) -> list[str]:
    """Results are kept by name, so two tasks of one name would overwrite each other."""
    names = [task.name for task in tasks]
    return [f"{where}: {name} appears more than once; give each its own label" for name in dict.fromkeys(names) if names.count(name) > 1]
