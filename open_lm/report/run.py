"""What a run folder and a file of scores say.

Run folder: `metrics.jsonl` (one object per log step) and, where they exist, `params.txt` (`name: value` lines), `out.log` (the number of
parameters, the resumes) and `checkpoints/results.jsonl` (a list of validation results a line). A run that was stopped hard may repeat
steps after it resumes, and may leave half a line: of repeated steps the last counts, and lines that aren't JSON are counted in
`bad_lines`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_lm.report.data import DataView, read_data
from open_lm.storage.yaml_json import read_json

_PARAMETERS = re.compile(r" \| Model .*: ([\d,]+) parameters$", re.MULTILINE)
_RESUMED = re.compile(r" \| Resumed from .*: step \d+, \d+ sequences, (\d+) tokens$", re.MULTILINE)


@dataclass(frozen=True)
class LogStep:
    """One line of metrics.jsonl; nan where a value is absent or not finite."""

    step: int
    tokens: float
    """Since the start of training, this step included."""
    loss: float
    lr: float
    tokens_per_second: float


@dataclass(frozen=True)
class Validation:
    """One validation set at one moment; nan where a value is absent."""

    tokens: float
    """Trained on so far."""
    data: str
    """The set, and the averager if it is an average of the weights that was validated."""
    loss: float
    perplexity: float
    token_accuracy: float
    bits_per_byte: float
    averager: str = ""


@dataclass(frozen=True)
class RunLog:
    """What is known of one run."""

    name: str
    folder: Path
    params: Mapping[str, str]
    steps: tuple[LogStep, ...]
    """In order, each step once."""
    validations: tuple[Validation, ...]
    """In order."""
    resumed_at: tuple[float, ...]
    """Training tokens at each resume: what out.log says, without it the log steps at which metrics.jsonl goes back."""
    bad_lines: int
    parameters: int | None
    """Of the model; None where out.log doesn't say."""
    data: DataView
    """What it read."""

    def median_tokens_per_second(self) -> float:
        """Over the log steps; nan where none is known. The first, which includes the start-up, weighs no more than the others."""
        speeds = sorted(s.tokens_per_second for s in self.steps if math.isfinite(s.tokens_per_second))
        return speeds[len(speeds) // 2] if speeds else math.nan

    def last_validations(self) -> tuple[Validation, ...]:
        """The newest result of each validation set."""
        return tuple({v.data: v for v in self.validations}.values())


@dataclass(frozen=True)
class Score:
    """One checkpoint on one task."""

    accuracy: float
    questions: int
    """0 where unknown."""
    seconds: float
    """nan where unknown."""


Scores = dict[str, dict[str, Score]]
"""{checkpoint: {"<label>/<n>-shot": score}}"""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else math.nan


def _json_lines(path: Path) -> tuple[list[Any], int]:
    """The values of a JSON lines file, and the number of lines that aren't JSON."""
    values, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if line.strip():
            try:
                values.append(json.loads(line))
            except ValueError:
                bad += 1
    return values, bad


def read_run(folder: str | Path) -> RunLog:
    """Read a run folder.

    Raises:
        ValueError: no folder, or no log steps in it.
    """
    path = Path(folder)
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        what = "holds no metrics.jsonl" if path.is_dir() else "no such folder"
        raise ValueError(f"--run {folder}: {what}; give a run folder, such as logs/NAME")
    values, bad = _json_lines(metrics)
    steps, resumed = _log_steps(values)
    if not steps:
        raise ValueError(f"--run {folder}: metrics.jsonl holds no log step yet; wait for the first one")
    results = path / "checkpoints" / "results.jsonl"
    lists, bad_results = _json_lines(results) if results.is_file() else ([], 0)
    bad += len(values) - sum(_is_log_step(value) for value in values) + bad_results
    log = path / "out.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    resumed = tuple(float(tokens) for tokens in _RESUMED.findall(text)) or resumed
    counts = _PARAMETERS.findall(text)
    parameters = int(counts[-1].replace(",", "")) if counts else None
    told, data = _read_params(path / "params.txt"), read_data(str(path.resolve()))
    return RunLog(path.resolve().name, path, told, steps, _validations(lists), resumed, bad, parameters, data)


def _is_log_step(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("step"), int)


def _log_steps(values: list[Any]) -> tuple[tuple[LogStep, ...], tuple[float, ...]]:
    """Each step once, the last one said, in order; and where the file goes back."""
    by_step: dict[int, LogStep] = {}
    resumed: list[float] = []
    previous = -1
    for value in filter(_is_log_step, values):
        numbers = {key: _number(value.get(key)) for key in ("tokens", "loss", "lr", "tokens_per_second")}
        step = LogStep(value["step"], **numbers)
        if step.step <= previous:
            resumed.append(step.tokens)
        by_step[step.step] = step
        previous = step.step
    return tuple(by_step[number] for number in sorted(by_step)), tuple(resumed)


def _validations(lists: list[Any]) -> tuple[Validation, ...]:
    """All results by training tokens; of one data set at one place the last one counts."""
    found: dict[tuple[float, str], Validation] = {}
    for results in lists:
        for result in results if isinstance(results, list) else [results]:
            if isinstance(result, dict) and math.isfinite(_number(result.get("loss"))):
                data = result.get("val_data")
                name = ", ".join(map(str, data)) if isinstance(data, list) else str(data)
                name += f" ({result['averager']})" if result.get("averager") else ""
                keys = ("loss", "perplexity", "token_accuracy", "bits_per_byte")
                numbers = {key: _number(result.get(key)) for key in keys}
                tokens = _number(result.get("train_tokens"))
                found[tokens, name] = Validation(tokens, name, **numbers, averager=str(result.get("averager") or ""))
    return tuple(sorted(found.values(), key=lambda v: v.tokens))


def _read_params(path: Path) -> dict[str, str]:
    """The values of params.txt as they stand there; empty where the file is absent."""
    if not path.is_file():
        return {}
    pairs = (line.partition(": ") for line in path.read_text(encoding="utf-8").splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def read_scores(path: str | Path) -> Scores:
    """Read the JSON that eval_openlm_ckpt.py writes.

    Raises:
        ValueError: not such a file.
    """
    try:
        content = read_json(Path(path).read_bytes())
        return {
            str(checkpoint): {
                str(task): Score(float(s["accuracy"]), int(s.get("questions", 0)), _number(s.get("seconds"))) for task, s in tasks.items()
            }
            for checkpoint, tasks in content.items()
        }
    except OSError as error:
        raise ValueError(f"--scores {path}: {error.strerror}; give the file that eval_openlm_ckpt.py --out wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"--scores {path}: not a file of scores; give the one that eval_openlm_ckpt.py --out wrote") from None
