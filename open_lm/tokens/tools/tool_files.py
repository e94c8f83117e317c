"""Files of the small tools: input that can be read twice; output that is new unless it may be replaced, and whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from open_lm import storage
from open_lm.params.fields import UserError
from open_lm.tokens.reading.inputs import STDIN
from open_lm.tokens.reading.stdin import spool_stdin


def spooled(patterns: Sequence[str], folder: str) -> list[str]:
    """Input files, with standard input (-) copied into a folder, so that it can be read more than once."""
    return [spool_stdin(folder).path if pattern == STDIN else pattern for pattern in patterns]


def refuse_existing(outputs: Mapping[str, str | None], overwrite: bool) -> None:
    """Raises UserError for every local path, by its flag, that can't be written: remote, a folder, or there already."""
    problems = []
    for flag, output in outputs.items():
        if output is None:
            continue
        if storage.is_remote(output):
            problems.append(f"{flag} {output}: must be a local file; copy it when it is made")
            continue
        path = storage.local_path(output)
        if path.is_dir():
            problems.append(f"{flag} {output}: is a folder; name a file")
        elif path.exists() and not overwrite:
            problems.append(f"{flag} {output}: exists already; choose another name or add --overwrite")
    if problems:
        raise UserError(problems)


def write_file(output: str, data: bytes) -> None:
    """Write a local file, whole or not at all."""
    with storage.atomic_write(storage.local_path(output)) as file:
        file.write(data)
