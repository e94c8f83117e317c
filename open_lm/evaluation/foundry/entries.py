"""A task YAML as LLM Foundry's evaluators take it: every key of a task is kept, its data are located.

In: a YAML with `icl_tasks:`. Out: `FoundryFile`, one `Entry` for each element of the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from open_lm import storage
from open_lm.evaluation.precision import FOUNDRY_NAMES, Precision
from open_lm.evaluation.tasks import METRICS, OLD_NAMES, fetched, locate
from open_lm.params.fields import UserError, nearest

DEFAULT_BATCH_SIZE = 8
_REQUIRED = ("label", "dataset_uri", "num_fewshot", "icl_task_type")
_GENERATION = ("max_new_tokens", "use_cache", "pad_token_id", "eos_token_id")
"""Settings of a generation that are safe here: it is greedy."""


@dataclass(frozen=True)
class Entry:
    """One element of `icl_tasks:`."""

    label: str
    dataset_uri: str
    """As found: a local file, a URL, or hf://."""
    icl_task_type: str
    """LLM Foundry's present name of it."""
    num_fewshot: tuple[int, ...]
    has_categories: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)
    """The other keys, under LLM Foundry's names."""


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
    import yaml

    try:
        content = yaml.safe_load(storage.read_bytes(url))
    except FileNotFoundError:
        raise UserError([f"--eval-yaml {url}: no such file; give a YAML with `icl_tasks:`"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError([f"--eval-yaml {url}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    return parse_entries(content, url)


def parse_entries(content: object, url: str) -> FoundryFile:
    """The tasks of a YAML's content; `url` names the file and is where relative data may lie. Raises UserError."""
    where = f"--eval-yaml {url}"
    listed = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(listed, list) or not listed:
        raise UserError([f"{where}: must hold a list `icl_tasks:` of tasks"])
    problems: list[str] = []
    entries: list[Entry] = []
    for number, raw in enumerate(listed, 1):
        entry = _entry(raw, f"{where}: task {number}", url, problems)
        entries += [entry] if entry else []
    names = [f"{entry.label}/{n}-shot" for entry in entries for n in entry.num_fewshot]
    problems += [f"{where}: {n} appears more than once; give each its own label" for n in dict.fromkeys(names) if names.count(n) > 1]
    counts = {"max_seq_len": (content.get("max_seq_len"), 2), "device_eval_batch_size": (content.get("device_eval_batch_size"), 1)}
    counts["seed"] = (content.get("seed"), 0)
    for key, (value, least) in counts.items():
        if value is not None and not _is_count(value, least):
            problems.append(f"{where}: {key} {value}: give a whole number of at least {least}")
    precision = str(content.get("precision") or "fp32")
    if precision not in FOUNDRY_NAMES:
        problems.append(f"{where}: precision {precision}: choose one of {', '.join(FOUNDRY_NAMES)}")
    if problems:
        raise UserError(problems)
    batch_size = content.get("device_eval_batch_size") or DEFAULT_BATCH_SIZE
    return FoundryFile(tuple(entries), content.get("max_seq_len"), FOUNDRY_NAMES[precision], batch_size, content.get("seed") or 0)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _entry(raw: object, where: str, url: str, problems: list[str]) -> Entry | None:
    """One element of the list; None where it has a problem, which is added to `problems`."""
    before = len(problems)
    if not isinstance(raw, dict):
        problems.append(f"{where}: must hold `key: value` pairs")
        return None
    where = f"{where} ({raw['label']})" if raw.get("label") else where
    values = {str(key): value for key, value in raw.items() if value is not None}
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        problems.append(f"{where}: lacks {', '.join(missing)}")
        return None
    label, uri, shots, kind = (values.pop(key) for key in _REQUIRED)
    kind = OLD_NAMES.get(str(kind), str(kind))
    if kind not in METRICS:
        problems.append(f"{where}: icl_task_type {kind}: choose one of {', '.join(METRICS)}.{nearest(kind, METRICS)}")
    shots = shots if isinstance(shots, list) else [shots]
    if not shots or not all(_is_count(n, 0) for n in shots):
        problems.append(f"{where}: num_fewshot {shots}: give whole numbers, such as [0, 10]")
    problems += _other_problems(values, kind, where)
    found = str(uri) if str(uri).startswith("hf://") else locate(str(uri), url)
    if found is None:
        problems.append(
            f"{where}: dataset_uri {uri}: no such file in the working folder or beside the YAML; "
            f"correct it or put the data there{fetched(str(uri))}"
        )
    if len(problems) > before:
        return None
    categories = bool(values.pop("has_categories", False))
    if "prelimiter" not in values and "question_prelimiter" in values:
        values["prelimiter"] = values.pop("question_prelimiter")
    return Entry(str(label), found or "", kind, tuple(shots), categories, values)


def _other_problems(values: Mapping[str, Any], kind: str, where: str) -> list[str]:
    problems = []
    if "prelimiter" in values and "question_prelimiter" in values:
        problems.append(f"{where}: prelimiter and question_prelimiter are the same thing; give one of the two")
    names = values.get("metric_names")
    if names and kind in METRICS and METRICS[kind] not in names:
        problems.append(f"{where}: metric_names {names}: only {METRICS[kind]} is computed for {kind}")
    for key in values.get("generation_kwargs") or {}:
        if key not in _GENERATION:
            problems.append(f"{where}: generation_kwargs {key}: the bridge generates greedily; only {', '.join(_GENERATION)} are taken")
    return problems
