"""A task YAML in LLM Foundry's layout: the one place that reads it, checks what every backend needs, and locates the data.

In: a YAML with `icl_tasks:`. Out: `FoundryFile`, one `Entry` for each element of the list, all of its keys kept. LLM Foundry's
evaluators take entries as they are; `open_lm.evaluation.tasks` makes the native backend's tasks of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from open_lm import storage
from open_lm.evaluation.precision import FOUNDRY_NAMES, Precision
from open_lm.params.fields import UserError, nearest
from open_lm.storage import yaml_json

TaskType = Literal["multiple_choice", "schema", "language_modeling", "generation_task_with_answers"]

METRICS: dict[str, str] = {
    "multiple_choice": "InContextLearningMultipleChoiceAccuracy",
    "schema": "InContextLearningMultipleChoiceAccuracy",
    "language_modeling": "InContextLearningLMAccuracy",
    "generation_task_with_answers": "InContextLearningGenerationExactMatchAccuracy",
}
OLD_NAMES: dict[str, TaskType] = {"question_answering": "generation_task_with_answers"}
OLD_METRICS = {"InContextLearningQAAccuracy": "InContextLearningGenerationExactMatchAccuracy"}
DEFAULT_BATCH_SIZE = 8
REQUIRED = ("label", "dataset_uri", "num_fewshot", "icl_task_type")
TEXTS = (
    *("label", "dataset_uri", "icl_task_type", "metric_names", "prompt_string", "example_delimiter", "continuation_delimiter"),
    *("cot_delimiter", "early_stopping_criteria", "prelimiter", "question_prelimiter"),
)
"""Keys whose values are text, quoted or not."""
ONE_EACH = ("num_beams", "pass_at_k", "generations_per_sample")
"""How often a question is answered; LLM Foundry 0.22 refuses the first and knows the others of code alone."""
_GREEDY = {"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "do_sample": False, "use_cache": None, "pad_token_id": None}
"""Settings of a generation that change nothing, with the one value that does so (None: any)."""
Check = Callable[[Mapping[str, Any], str, str], list[str]]


@dataclass(frozen=True)
class Entry:
    """One element of `icl_tasks:`."""

    label: str
    dataset_uri: str
    """As found: a local file, a URL, or hf://."""
    icl_task_type: TaskType
    """LLM Foundry's present name of it."""
    num_fewshot: tuple[int, ...]
    has_categories: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)
    """The other keys, under LLM Foundry's names; of generation_kwargs what is honoured, max_new_tokens and eos_token_id."""


@dataclass(frozen=True)
class FoundryFile:
    """What a task YAML says."""

    entries: tuple[Entry, ...]
    max_seq_len: int | None
    """Longest request where a task doesn't say; None: the model's seq_len."""
    precision: Precision
    batch_size: int
    """Requests of a batch (device_eval_batch_size)."""
    seed: int


def read_entries(url: str) -> FoundryFile:
    """The tasks of a YAML file or URL, their data located.

    Raises:
        UserError: every problem of the file, missing data files included.
    """
    return parse_entries(read_yaml(url), url)


def read_yaml(url: str) -> object:
    """The content of a YAML file or URL. Raises UserError."""
    try:
        return yaml_json.read_yaml(storage.read_bytes(url), TEXTS)
    except FileNotFoundError:
        raise UserError([f"--eval-yaml {url}: no such file; give a YAML with `icl_tasks:`"]) from None
    except (OSError, ValueError) as error:
        raise UserError([f"--eval-yaml {url}: {error}"]) from None


def parse_entries(content: object, url: str, check: Check | None = None) -> FoundryFile:
    """The tasks of a YAML's content.

    Args:
        url: names the file, and is where relative data may lie.
        check: of a backend other than LLM Foundry, to which LLM Foundry's batch size and seed mean nothing: the problems that it
            alone has with an element; gets the keys, the task type and a name for messages.

    Raises:
        UserError: every problem found.
    """
    where = f"--eval-yaml {url}"
    listed = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(listed, list) or not listed:
        hint = nearest("icl_tasks", map(str, content)) if isinstance(content, dict) and "icl_tasks" not in content else ""
        raise UserError([f"{where}: must hold a list `icl_tasks:` of tasks.{hint}"])
    problems: list[str] = []
    entries: list[Entry] = []
    for number, raw in enumerate(listed, 1):
        entry = _entry(raw, f"{where}: task {number}", url, problems, check)
        entries += [entry] if entry else []
    # Results are kept by name, so two tasks of one name would overwrite each other.
    names = [f"{entry.label}/{n}-shot" for entry in entries for n in entry.num_fewshot]
    problems += [f"{where}: {n} appears more than once; give each its own label" for n in dict.fromkeys(names) if names.count(n) > 1]
    for key, least in (("max_seq_len", 2), *(() if check else (("device_eval_batch_size", 1), ("seed", 0)))):
        if content.get(key) is not None and not is_count(content[key], least):
            problems.append(f"{where}: {key} {content[key]}: give a whole number of at least {least}")
    precision = str(content.get("precision") or "fp32")
    if precision not in FOUNDRY_NAMES:
        problems.append(f"{where}: precision {precision}: choose one of {', '.join(FOUNDRY_NAMES)}")
    if problems:
        raise UserError(problems)
    batch_size, seed = ((content.get(key) or default) for key, default in (("device_eval_batch_size", DEFAULT_BATCH_SIZE), ("seed", 0)))
    return FoundryFile(tuple(entries), content.get("max_seq_len"), FOUNDRY_NAMES[precision], batch_size, seed)


def is_count(value: object, least: int) -> bool:
    """Whether a value is a whole number of at least so much."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _entry(raw: object, where: str, url: str, problems: list[str], check: Check | None) -> Entry | None:
    """One element of the list; None where it has a problem, which is added to `problems`."""
    before = len(problems)
    if not isinstance(raw, dict):
        problems.append(f"{where}: must hold `key: value` pairs")
        return None
    where = f"{where} ({raw['label']})" if raw.get("label") else where
    values = {str(key): value for key, value in raw.items() if value is not None}
    missing = [key for key in REQUIRED if key not in values]
    if missing:
        problems.append(f"{where}: lacks {', '.join(missing)}")
        return None
    label, uri, shots, kind = (values.pop(key) for key in REQUIRED)
    kind = OLD_NAMES.get(str(kind), str(kind))
    if kind == "code_evaluation":
        problems.append(f"{where}: icl_task_type {kind} would run what a model wrote, so it is not scored here; leave the task out")
    elif kind not in METRICS:
        problems.append(f"{where}: icl_task_type {kind}: choose one of {', '.join(METRICS)}.{nearest(kind, METRICS)}")
    shots = shots if isinstance(shots, list) else [shots]
    if not shots or not all(is_count(n, 0) for n in shots):
        problems.append(f"{where}: num_fewshot {shots}: give whole numbers, such as [0, 10]")
    problems += _other_problems(values, kind, where)
    problems += check({**values, "dataset_uri": str(uri)}, kind, where) if check else []
    found, wrong = _locate(str(uri), url, where)
    problems += wrong
    if len(problems) > before:
        return None
    categories = values.pop("has_categories", False)
    return Entry(str(label), found, cast(TaskType, kind), tuple(shots), categories, _as_foundry_has_them(values, kind))


def _as_foundry_has_them(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The keys under LLM Foundry's present names, without those that change nothing."""
    kept = {key: value for key, value in values.items() if key not in (*ONE_EACH, "generation_kwargs", "question_prelimiter")}
    if "question_prelimiter" in values:
        kept["prelimiter"] = values["question_prelimiter"]
    settings = values.get("generation_kwargs") or {}
    honoured = {key: settings[key] for key in ("max_new_tokens", "eos_token_id") if settings.get(key) is not None}
    if honoured and kind == "generation_task_with_answers":
        kept["generation_kwargs"] = honoured
    return kept


def _other_problems(values: Mapping[str, Any], kind: str, where: str) -> list[str]:
    problems = []
    if "prelimiter" in values and "question_prelimiter" in values:
        problems.append(f"{where}: prelimiter and question_prelimiter are the same thing; give one of them")
    if not isinstance(values.get("has_categories", False), bool):
        problems.append(f"{where}: has_categories {values['has_categories']!r}: give true or false")
    names = values.get("metric_names") or ()
    names = [OLD_METRICS.get(name, name) for name in ([names] if isinstance(names, str) else names)]
    if names and kind in METRICS and METRICS[kind] not in names:
        problems.append(f"{where}: metric_names {names}: only {METRICS[kind]} is computed for {kind}")
    if kind == "generation_task_with_answers":
        problems += _generation_problems(values, where)
    return problems


def _generation_problems(values: Mapping[str, Any], where: str) -> list[str]:
    """Answers are generated greedily, one a question; settings that ask for anything else are refused."""
    problems = [
        f"{where}: {key} {values[key]}: each question is answered once, greedily; leave the key out"
        for key in ONE_EACH
        if key in values and values[key] not in (1, [1])
    ]
    settings = values.get("generation_kwargs") or {}
    if not isinstance(settings, dict):
        return [*problems, f"{where}: generation_kwargs {settings!r}: must hold `key: value` pairs"]
    for key, value in settings.items():
        said = f"{where}: generation_kwargs: {key} {value}"
        if key in ("max_new_tokens", "eos_token_id"):
            if value is not None and not is_count(value, least := int(key == "max_new_tokens")):
                problems.append(f"{said}: give one whole number of at least {least}")
        elif key not in _GREEDY or _GREEDY[key] not in (None, value):
            problems.append(f"{said}: each question is answered once, greedily; only max_new_tokens and eos_token_id can be set")
    return problems


def _locate(uri: str, url: str, where: str) -> tuple[str, list[str]]:
    """Data from the working folder, else from the YAML's folder, there also without LLM Foundry's `eval/` before it; and what is wrong."""
    if uri.startswith("hf://"):
        return uri, []
    beside = [storage.join(storage.parent(url), name) for name in dict.fromkeys((uri, uri.removeprefix("eval/")))]
    found = next((path for path in dict.fromkeys((uri, *beside)) if storage.exists(path)), None)
    if found is not None:
        return found, []
    hint = " (download_data.py fetches local_data/)" if uri.removeprefix("eval/").startswith("local_data/") else ""
    places = "the working folder" if beside == [uri] else f"the working folder or as {' or '.join(beside)}"
    return "", [f"{where}: dataset_uri {uri}: no such file in {places}; correct it or put the data there{hint}"]
