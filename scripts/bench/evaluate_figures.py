"""From runs of the columns to ratios and Markdown. Pure: dictionaries in, dictionaries and text out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FOUNDRY, BRIDGE, NATIVE = "LLM Foundry at 2048", "bridge", "native"
HFLM, OURS = "lm-eval's own", "ours in lm-eval"
RATIOS = ((BRIDGE, FOUNDRY, 8.0), (NATIVE, FOUNDRY, 20.0), (OURS, HFLM, 1.5))
"""Ours, theirs, and how many times as fast it shall be over all tasks."""
Runs = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""By column, then task: what each round found."""


def seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    """Median."""
    return statistics.median(run["seconds"] for run in runs)


def ratios(runs: Runs) -> dict[str, dict[str, float]]:
    """How many times as fast ours is over all tasks, medians added up; with the target."""
    found = {}
    for ours, theirs, target in RATIOS:
        if ours in runs and theirs in runs:
            sums = [sum(seconds(some) for some in runs[column].values()) for column in (ours, theirs)]
            found[f"{ours} / {theirs}"] = {"times": round(sums[1] / sums[0], 2), "target": target}
    return found


def differences(runs: Runs) -> list[str]:
    """Every score in which two columns or two rounds differ; LLM Foundry's verdicts are compared question by question."""
    problems = []
    for ours, theirs in ((BRIDGE, NATIVE), (OURS, HFLM)):
        for task in runs.get(theirs, {}):
            seen = [run["scores"] for column in (ours, theirs) for run in runs.get(column, {}).get(task, ())]
            problems += [f"{task}: {ours} and {theirs}: {one} and {seen[0]}" for one in seen if not _equal(one, seen[0])]
    for task, some in runs.get(FOUNDRY, {}).items():
        for run in some:
            ours_right = runs[NATIVE][task][0]["right"][: len(run["right"])]
            if run["right"] != ours_right:
                problems.append(f"{task}: LLM Foundry alone finds {run['right']} right, native {ours_right}")
    return problems


def _equal(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return a.keys() == b.keys() and all(abs(a[name] - b[name]) < 1e-9 for name in a)


def table(model: str, runs: Runs) -> str:
    """Markdown: seconds of each task and column, and of all; ratios with their targets below."""
    parts = []
    for columns in ((FOUNDRY, BRIDGE, NATIVE), (HFLM, OURS)):
        here = [column for column in columns if column in runs]
        if not here:
            continue
        lines = [f"| {model} | score | {' | '.join(f'{column} s' for column in here)} |", f"| --- | ---: |{' ---: |' * len(here)}"]
        for task in runs[here[0]]:
            scores = ", ".join(f"{value:.2f}" for value in runs[here[-1]][task][0]["scores"].values())
            lines.append(f"| {task} | {scores} | {' | '.join(f'{seconds(runs[column][task]):.2f}' for column in here)} |")
        sums = [sum(seconds(some) for some in runs[column].values()) for column in here]
        lines.append(f"| **all** | | {' | '.join(f'**{value:.2f}**' for value in sums)} |")
        parts.append("\n".join(lines))
    lines = ["| times as fast | found | target |", "| --- | ---: | ---: |"]
    for name, one in ratios(runs).items():
        missed = "" if one["times"] >= one["target"] else ", missed"
        lines.append(f"| {model}: {name} | {one['times']:.2f}{missed} | {one['target']:g} |")
    return "\n\n".join([*parts, "\n".join(lines)])
