"""The work behind `eval/compare.py`: results of several files in one table, and of two columns their difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from open_lm.evaluation.published import reference, references
from open_lm.params.fields import Problems, UserError, parse_topics

if TYPE_CHECKING:
    from open_lm.evaluation.result import Result
    from open_lm.evaluation.table import Column


@dataclass(frozen=True)
class CompareParams:
    """comparison"""

    results: tuple[str, ...] = ()
    """results.json files of eval_openlm_ckpt.py --out, as they stand; their names alone will do before all options."""
    reference: tuple[str, ...] = ()
    """Columns of published numbers: OpenLM-1B, OpenLM-7B, LLaMA-7B, MPT-7B."""
    out: tuple[str, ...] = ()
    """Write the table to these files: .json (all results in one), .csv, .md, .png."""


def run_compare(argv: Sequence[str]) -> None:
    """Print the table and write the files. Raises ValueError for what the user can mend."""
    arguments = list(argv)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--results")
    values, _ = parse_topics((CompareParams,), arguments, prog="compare.py", description="compare.py a.json b.json [...]")
    params: CompareParams = values[CompareParams]
    from open_lm.evaluation.table import columns_of, markdown_table, read_results
    from open_lm.evaluation.table_files import check_ending, write_table

    problems = Problems()
    if not params.results:
        problems.found.append("compare.py: give results.json files, such as compare.py a.json b.json")
    for name in params.reference:
        problems.attempt(reference, name)
    for name in params.out:
        problems.attempt(check_ending, name)
        if name in params.results:
            problems.found.append(f"--out {name}: is one of the results that are compared; give another name")
    read = {path: problems.attempt(read_results, path) or {} for path in params.results}
    problems.raise_any()
    results = merged(read)
    published = references(params.reference)
    for path in params.out:
        write_table(results, path, published)
    print(markdown_table(results, published))
    columns = columns_of(results, published)
    if len(columns) == 2:
        print("\n" + difference(*columns))


def merged(files: Mapping[str, Mapping[str, Mapping[str, Result]]]) -> dict[str, Mapping[str, Result]]:
    """The columns of several files, by checkpoint; one that is in several files gets the file's name before it."""
    if len(set(files)) < len(files):
        raise UserError(["compare.py: a file is given twice"])
    counts: dict[str, int] = {}
    for content in files.values():
        for checkpoint in content:
            counts[checkpoint] = counts.get(checkpoint, 0) + 1
    return {
        (f"{path}: {checkpoint}" if counts[checkpoint] > 1 else checkpoint): tasks
        for path, content in files.items()
        for checkpoint, tasks in content.items()
    }


def difference(left: Column, right: Column) -> str:
    """One line for each task that both have: right minus left, in errors where they are known.

    The errors are added as if the questions were different ones; on the same questions a difference is surer than that.
    """
    lines = []
    for task in [name for name in left.cells if name in right.cells]:
        a, b = left.cells[task], right.cells[task]
        change = b.accuracy - a.accuracy
        error = math.hypot(a.stderr or 0, b.stderr or 0)
        lines.append(f"{task}: {change:+.4f}" + (f" ({change / error:+.1f} standard errors)" if error else ""))
    return f"{right.name} minus {left.name}\n" + "\n".join(lines) if lines else "no task is in both"
