"""The table of results as a file; its ending says which: .json, .csv, .md or .png."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from open_lm import storage
from open_lm.evaluation.table import (
    Column,
    Results,
    columns_of,
    markdown_table,
    mean_of,
    mean_rows,
    read_results,
    task_names,
    write_results,
)

ENDINGS = (".json", ".csv", ".md", ".png")
_SOFTWARE = "OpenLM's table of results"
"""In our pictures: what tells them from others."""
COLOURS = ("#2a78d6", "#e07b39", "#3a9d5d", "#8b5fbf", "#c23b4b", "#6b7280", "#b59a2d", "#2f9e9e")


def check_ending(path: str) -> None:
    """Raises ValueError for a file that is none of these, can't be written where it is named, or is there and no table of ours."""
    ending = PurePosixPath(path).suffix
    if ending not in ENDINGS:
        raise ValueError(f"--out {path}: give a name that ends in one of {', '.join(ENDINGS)}")
    if problems := storage.unwritable("--out", path):
        raise ValueError(problems[0])
    target = storage.local_path(path)
    if target.exists() and not _is_table(target, ending):
        raise ValueError(f"--out {path}: exists, and is no table that this program wrote; move it away, or give another name")


def _is_table(path: Path, ending: str) -> bool:
    """Whether a file begins as the tables here do; of JSON, whether all of it reads as results."""
    if ending == ".json":
        try:
            return read_results(str(path)) is not None
        except ValueError:
            return False
    with open(path, "rb") as file:
        begin = file.read(200)
    return _SOFTWARE.encode() in begin if ending == ".png" else re.match(rb"task,questions,|\| task +\| questions", begin) is not None


def write_table(results: Results, path: str, references: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """Write one file, whole or not at all. The JSON holds the checkpoints only, so that it can be read back."""
    check_ending(path)
    ending = PurePosixPath(path).suffix
    if ending == ".json":
        write_results(results, path)
        return
    columns = columns_of(results, references)
    if ending == ".png":
        data = picture(columns)
    else:
        text = csv_table(columns) if ending == ".csv" else markdown_table(results, references) + "\n"
        data = text.encode("utf-8")
    with storage.atomic_write(path) as file:
        file.write(data)


def csv_table(columns: Sequence[Column]) -> str:
    """Tasks down, their categories below each; for each column accuracy and standard error in full. The mean is the last line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "questions", *(name for column in columns for name in (column.name, f"{column.name} stderr"))])
    for task in task_names(columns, categories=True):
        cells = [column.cells.get(task) for column in columns]
        questions = next((cell.questions for cell in cells if cell and cell.questions is not None), "")
        writer.writerow([task, questions, *(value for cell in cells for value in _values(cell))])
    common = mean_rows(columns)
    if common:
        means = [mean_of(column, common) for column in columns]
        writer.writerow([f"mean of {len(common)}", "", *(value for cell in means for value in _values(cell))])
    return out.getvalue()


def _values(cell: Any) -> tuple[Any, Any]:
    return ("", "") if cell is None else (cell.accuracy, "" if cell.stderr is None else cell.stderr)


def picture(columns: Sequence[Column]) -> bytes:
    """A PNG: for each task a bar for each column, with its standard error; the mean at the bottom."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks, common = task_names(columns), mean_rows(columns)
    labels = [*tasks, f"mean of {len(common)}"] if len(common) > 1 else tasks
    height = 0.8 / len(columns)
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + len(labels) * (0.25 + 0.14 * len(columns))), layout="constrained")
    for number, column in enumerate(columns):
        cells = [column.cells.get(task) for task in tasks] + ([mean_of(column, common)] if len(common) > 1 else [])
        found = [(row + (number - (len(columns) - 1) / 2) * height, cell) for row, cell in enumerate(cells) if cell]
        axes.barh(
            [place for place, _ in found],
            [cell.accuracy for _, cell in found],
            height * 0.9,
            xerr=[cell.stderr or 0 for _, cell in found],
            color=COLOURS[number % len(COLOURS)],
            alpha=0.55 if column.published else 1,
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
            label=f"{column.name} (published)" if column.published else column.name.replace("\\|", "|"),
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(3, len(columns)), frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Software": _SOFTWARE})
    pyplot.close(figure)
    return out.getvalue()
