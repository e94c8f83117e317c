#!/usr/bin/env python
"""Say what a run has read: sources, shares, passes, losses, waiting, bytes; on the terminal or a page. The work is in open_lm/report."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm.params.fields import UserError, parse_topics  # noqa: E402


@dataclass(frozen=True)
class DataReportParams:
    """data report"""

    run: str | None = None
    """Run folder, such as logs/NAME, or its url; the run may still be going."""
    output: str | None = None
    """Write the run's page here as well, such as OUT/report.html; its pictures are put beside it. Not for an url."""


def _report(params: DataReportParams) -> None:
    from open_lm import storage
    from open_lm.progress import Progress
    from open_lm.report import Report, output_problems, read_data, read_run, write_report
    from open_lm.report.data_table import lines

    problems = [] if params.run else ["--run: missing; give a run folder, such as logs/NAME"]
    if params.output and params.run and storage.is_remote(params.run):
        problems.append(f"--output {params.output}: a page needs the run folder on this machine; copy it, or leave --output out")
    problems += output_problems(params.output)
    if problems:
        raise UserError(problems)
    assert params.run
    with Progress("data report"):
        told = [*lines(read_data(params.run))]
    print("\n".join(told))
    if params.output:
        with Progress("page"):
            files = write_report(Report([read_run(params.run)]), params.output)
        print(*files, sep="\n")


def main() -> int:
    """Exit status 0, or 2 with the problems on stderr."""
    try:
        topics, _ = parse_topics((DataReportParams,), description=__doc__)
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of any script, on any terminal
        _report(topics[DataReportParams])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
