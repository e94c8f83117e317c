"""Results of checkpoints on tasks: a Markdown table to read, JSON to keep.

JSON: `{checkpoint: {"<label>/<n>-shot": {"accuracy": 0.31, "questions": 100, "seconds": 1.2}}}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from open_lm import storage
from open_lm.evaluation.benchmark import Result

Results = Mapping[str, Mapping[str, Result]]
"""By checkpoint, then by task name."""


def markdown_table(results: Results) -> str:
    """Tasks down, checkpoints across, and the mean accuracy where all tasks are there for a checkpoint."""
    tasks = list(dict.fromkeys(task for column in results.values() for task in column))
    rows = [["task", "questions", *short_names(results)], ["---", *["---:"] * (len(results) + 1)]]
    for task in tasks:
        found = [column.get(task) for column in results.values()]
        counts = sorted({result.questions for result in found if result})
        rows.append([task, "/".join(map(str, counts)), *(f"{result.accuracy:.4f}" if result else "" for result in found)])
    if len(tasks) > 1:
        rows.append(["**mean**", "", *(_mean(column, len(tasks)) for column in results.values())])
    return _aligned(rows)


def _mean(column: Mapping[str, Result], n_tasks: int) -> str:
    if len(column) < n_tasks:
        return ""
    return f"**{sum(result.accuracy for result in column.values()) / n_tasks:.4f}**"


def _aligned(rows: list[list[str]]) -> str:
    """Markdown whose columns also line up as plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        rule = row[0] == "---"
        cells = [
            ("-" * (w - 1) + ":" if i else "-" * w) if rule else (cell.rjust(w) if i else cell.ljust(w))
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def short_names(checkpoints: Iterable[str]) -> list[str]:
    """The fewest last parts of each path that tell them all apart; `|` would end a Markdown cell."""
    parts = [name.rstrip("/").split("/") for name in checkpoints]
    deepest = max((len(p) for p in parts), default=1)
    for depth in range(1, deepest + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return [name.replace("|", "\\|") for name in names] if parts else []


def results_json(results: Results) -> dict[str, dict[str, dict[str, float | int]]]:
    """Plain values in the layout above."""
    return {
        checkpoint: {task: {"accuracy": r.accuracy, "questions": r.questions, "seconds": round(r.seconds, 3)} for task, r in column.items()}
        for checkpoint, column in results.items()
    }


def write_results(results: Results, path: str | Path) -> None:
    """Write the JSON, whole or not at all."""
    with storage.atomic_write(path, "w") as file:
        json.dump(results_json(results), file, indent=2, ensure_ascii=False)
        file.write("\n")
