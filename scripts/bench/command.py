"""A benchmark as a command: its exit status, its JSON, and what it found to be wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """What was measured."""

    figures: Mapping[str, Any]
    problems: Sequence[str]
    """What makes the figures void."""
    file: str | None
    """Gets the figures as JSON."""


def run(work: Callable[[], Report]) -> int:
    """Exit status 0; 1 when `work` failed (RuntimeError) or found problems; 2 for bad options (ValueError)."""
    try:
        report = work()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if report.file:
        Path(report.file).write_text(json.dumps(report.figures, indent=1) + "\n", encoding="utf-8")
    for problem in report.problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    return 1 if report.problems else 0
