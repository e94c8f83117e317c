#!/usr/bin/env python
"""Write a run as a page with pictures: loss, learning rate, tokens/s, scores; several runs overlaid. The work is in open_lm/report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm.params.fields import UserError, parse_topics  # noqa: E402
from open_lm.progress import Progress  # noqa: E402
from open_lm.report import Report, Scores, output_problems, read_run, read_scores, write_report  # noqa: E402


@dataclass(frozen=True)
class ReportParams:
    """report"""

    run: tuple[str, ...] = ()
    """Run folders, such as logs/NAME; several are drawn over each other."""
    scores: tuple[str, ...] = ()
    """JSON files of eval_openlm_ckpt.py --out."""
    chance: tuple[str, ...] = ()
    """What guessing gives on a task, as label=share: next_line=0.25."""
    samples: str | None = None
    """Text file of generated samples."""
    title: str = ""
    """Heading. Default: the names of the runs."""
    output: str | None = None
    """The page to write, such as OUT/report.html; its pictures are put beside it."""


def _chance(texts: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in texts:
        task, equals, share = text.rpartition("=")
        try:
            found[task] = float(share)
        except ValueError:
            equals = ""
        if not equals or not 0 <= found[task] <= 1:
            raise ValueError(f"--chance {text}: give label=share, such as next_line=0.25")
    return found


def _samples(path: str | None) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace") if path else ""
    except OSError as error:
        raise ValueError(f"--samples {path}: {error.strerror}; give a text file") from None


def _report(params: ReportParams) -> Report:
    missing = [
        f"--{name}: missing; {what}"
        for name, what in (("run", "give a run folder"), ("output", "give the page to write"))
        if not getattr(params, name)
    ]
    problems = [*missing, *output_problems(params.output)]
    if problems:
        raise UserError(problems)
    scores: Scores = {}
    for path in params.scores:
        for checkpoint, tasks in read_scores(path).items():
            scores.setdefault(checkpoint, {}).update(tasks)
    runs = [read_run(folder) for folder in params.run]
    return Report(runs, scores, _chance(params.chance), _samples(params.samples), params.title)


def main() -> int:
    """Exit status 0, or 2 with the problems on stderr."""
    try:
        topics, _ = parse_topics((ReportParams,), description=__doc__)
        params: ReportParams = topics[ReportParams]
        with Progress("report"):
            report = _report(params)
            assert params.output
            files = write_report(report, params.output)
        print(*files, sep="\n")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
