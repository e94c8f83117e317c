"""Results of checkpoints on tasks, side by side: the table's columns, rows, means and errors; Markdown to read, JSON to keep.

JSON: `{checkpoint: {"<label>/<n>-shot[/<category>]": {"accuracy": 0.31, "questions": 100, "seconds": 1.2, "stderr": 0.046}}}`, of the
evaluation command with a hash `inputs` of what decides the result.

A task with categories is one row: the plain mean of its categories, as LLM Foundry has it. The mean below the table is over the rows
that every column has, of these each label once, at the first of its numbers of examples (OpenLM's averages leave MMLU with 5 examples out).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from open_lm import storage
from open_lm.evaluation.result import Result
from open_lm.storage.yaml_json import read_json

Results = Mapping[str, Mapping[str, Result]]
"""By checkpoint, then by task name."""


@dataclass(frozen=True)
class Cell:
    """One task of one column."""

    accuracy: float
    stderr: float | None = None
    """None where it isn't known."""
    questions: int | None = None


@dataclass(frozen=True)
class Column:
    """A checkpoint, or a model of which numbers were published."""

    name: str
    cells: Mapping[str, Cell]
    """By task name; of a task with categories the whole comes before them."""
    published: bool = False


def standard_error(accuracy: float, questions: int) -> float:
    """Of a share of `questions` independent ones: sqrt(p (1 - p) / (n - 1)); 0 for a single question."""
    return math.sqrt(accuracy * (1 - accuracy) / (questions - 1)) if questions > 1 else 0.0


def whole_task(name: str) -> str:
    """`<label>/<n>-shot` of the name of a category, or the name itself."""
    head, found, _ = name.partition("-shot/")
    return f"{head}-shot" if found else name


def columns_of(results: Results, references: Mapping[str, Mapping[str, float]] | None = None) -> list[Column]:
    """One column for each checkpoint under its short name, then the published ones."""
    columns = [Column(name, cells_of(tasks)) for name, tasks in zip(short_names(results), results.values(), strict=True)]
    for model, rows in (references or {}).items():
        columns.append(Column(model, {task: Cell(accuracy) for task, accuracy in rows.items()}, published=True))
    return columns


def cells_of(tasks: Mapping[str, Result]) -> dict[str, Cell]:
    """By name; of a task with categories the whole, their plain mean, comes before them."""
    groups: dict[str, dict[str, Cell]] = {}
    for name, result in tasks.items():
        cell = Cell(result.accuracy, standard_error(result.accuracy, result.questions), result.questions)
        groups.setdefault(whole_task(name), {})[name] = cell
    cells: dict[str, Cell] = {}
    for name, parts in groups.items():
        if name not in parts:
            cells[name] = _mean_cell(list(parts.values()))
        cells |= parts
    return cells


def _mean_cell(parts: Sequence[Cell]) -> Cell:
    """The plain mean of independent parts."""
    stderr = math.sqrt(sum((part.stderr or 0) ** 2 for part in parts)) / len(parts)
    return Cell(sum(part.accuracy for part in parts) / len(parts), stderr, sum(part.questions or 0 for part in parts))


def task_names(columns: Sequence[Column], categories: bool = False) -> list[str]:
    """Rows of the table in the order in which checkpoints bring them; published rows that no checkpoint has are left out."""
    ours = [column for column in columns if not column.published] or columns
    names = dict.fromkeys(name for column in ours for name in column.cells)
    return [name for name in names if categories or whole_task(name) == name]


def mean_rows(columns: Sequence[Column]) -> list[str]:
    """The rows that the mean is over. lm-evaluation-harness's further metrics, `<task>:<metric>`, are rows of their task."""
    first: dict[str, str] = {}
    for name in task_names(columns):
        if all(name in column.cells for column in columns):
            label = name.rpartition("/")[0] or name
            first.setdefault(label.partition(":")[0], name)
    return list(first.values())


def mean_of(column: Column, rows: Sequence[str]) -> Cell:
    """The mean of some rows of a column; its error takes tasks as they are, only questions as drawn."""
    cell = _mean_cell([column.cells[row] for row in rows])
    return Cell(cell.accuracy) if column.published else cell


def markdown_table(results: Results, references: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Tasks down, columns across, standard errors after ±, and the mean of the rows that all columns have."""
    columns = columns_of(results, references)
    tasks = task_names(columns)
    rows = [["task", "questions", *(column.name for column in columns)], ["---", *["---:"] * (len(columns) + 1)]]
    for task in tasks:
        found = [column.cells.get(task) for column in columns]
        counts = sorted({cell.questions for cell in found if cell and cell.questions is not None})
        rows.append([task, "/".join(map(str, counts)), *(_text(cell) for cell in found)])
    common = mean_rows(columns)
    if len(common) > 1:
        rows.append([f"**mean of {len(common)}**", "", *(f"**{_text(mean_of(column, common))}**" for column in columns)])
    return _aligned(rows)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.questions is None and cell.stderr is None:
        return f"{cell.accuracy:.2f}"
    return f"{cell.accuracy:.4f} ± {cell.stderr:.4f}"


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


def results_json(results: Results) -> dict[str, dict[str, dict[str, float | int | str]]]:
    """Plain values in the layout above."""
    return {checkpoint: {task: result_json(result) for task, result in column.items()} for checkpoint, column in results.items()}


def result_json(result: Result, stderr: float | None = None) -> dict[str, float | int | str]:
    """Plain values of one task. `stderr`: where it is not that of single questions."""
    stderr = standard_error(result.accuracy, result.questions) if stderr is None else stderr
    plain: dict[str, float | int | str] = {
        "accuracy": result.accuracy,
        "questions": result.questions,
        "seconds": round(result.seconds, 3),
        "stderr": stderr,
    }
    return {**plain, "inputs": result.inputs} if result.inputs else plain


def write_results(results: Results, path: str | Path) -> None:
    """Write the JSON, whole or not at all."""
    with storage.atomic_write(path, "w") as file:
        json.dump(results_json(results), file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_results(path: str) -> dict[str, dict[str, Result]]:
    """The results of a JSON file or URL. Raises ValueError for one that isn't in the layout above."""
    try:
        content = read_json(storage.read_bytes(path))
        return {
            checkpoint: {
                task: Result(float(r["accuracy"]), int(r["questions"]), float(r["seconds"]), str(r.get("inputs", "")))
                for task, r in column.items()
            }
            for checkpoint, column in content.items()
        }
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give results.json files of eval_openlm_ckpt.py --out") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not results of eval_openlm_ckpt.py --out ({error})") from None
