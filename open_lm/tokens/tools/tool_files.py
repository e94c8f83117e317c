"""Files of the small tools: input that can be read twice; output that is new unless it may be replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from open_lm import storage
from open_lm.tokens.reading.inputs import STDIN
from open_lm.tokens.reading.stdin import spool_stdin


def spooled(patterns: Sequence[str], folder: str) -> list[str]:
    """Input files, with standard input (-) copied into a folder, so that it can be read more than once."""
    return [spool_stdin(folder).path if pattern == STDIN else pattern for pattern in patterns]


def output_problems(outputs: Mapping[str, str | None], overwrite: bool) -> list[str]:
    """What stands in the way of writing files, by their flags: a name that can't be written, or that is there already."""
    problems = []
    for flag, output in outputs.items():
        problems += storage.unwritable(flag, output)
        if output and not storage.is_remote(output) and storage.local_path(output).is_file() and not overwrite:
            problems.append(f"{flag} {output}: exists already; choose another name or add --overwrite")
    return problems
