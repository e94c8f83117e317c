"""May this job write here? Finished by the same command: done. Begun by it: go on. Another's: an error that says what differs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from open_lm.tokens import stats
from open_lm.tokens.destination import STATS, Destination, is_written
from open_lm.tokens.job import Identity, WorkFolder, differences
from open_lm.tokens.reading.inputs import InputFile

log = logging.getLogger(__name__)


def claim(
    folder: WorkFolder, places: Destination, wanted: Identity, files: Sequence[InputFile], overwrite: bool, resume: bool
) -> stats.Counts | None:
    """Make the work folder ready for a job, new or begun.

    Returns:
        The counts of the job, when it is finished already.

    Raises:
        ValueError: the output or the work belongs to another command.
    """
    begun = folder.found()
    if begun is not None and begun == wanted.to_json() and resume:
        finished = None if folder.writing or overwrite else _finished(places, wanted)
        if finished is None:
            _check_free(places, folder, overwrite, wanted)
            folder.clear_left_overs()
            if folder.writing:
                places.clear_left_overs()
            return None
        folder.remove()  # it was stopped between its last file and this
        return finished
    if begun is not None and begun != wanted.to_json() and not overwrite:
        said = "; ".join([*differences(begun, wanted), *(folder.changed_inputs(files) if begun.get("inputs") != wanted.inputs else [])])
        raise ValueError(
            f"--output-dir {Path(places.root).parent}: holds the unfinished work of another command: {said}."
            " Give the same options to go on with it, --overwrite to drop it, or another folder"
        )
    if not overwrite and begun is None:
        finished = _finished(places, wanted)
        if finished is not None:
            return finished
    if not (begun == wanted.to_json() and folder.writing):
        _check_free(places, folder, overwrite, wanted)
    folder.begin(wanted, files)
    return None


def _check_free(places: Destination, folder: WorkFolder, overwrite: bool, wanted: Identity) -> None:
    """Raises ValueError for a folder that holds something which may not be replaced."""
    if folder.writing or not (files := places.files()):
        return
    found = _job_of(places.read(STATS))
    if found is None and (named := sorted(filter(is_written, files))):
        remedy = "is removed: move it away, or give another folder"
        raise ValueError(f"--output-dir: {places.root} holds {named[0]} and no {STATS} that tells of this program's work; nothing {remedy}")
    if overwrite:
        return
    said = "holds files"
    if found is not None:
        said = f"holds the shards of another command ({'; '.join(differences(found, wanted)) or 'the same options'})"
    raise ValueError(f"--output-dir: {places.root} {said}; give --overwrite to replace what this program wrote there, or another folder")


def _job_of(data: bytes | None) -> dict[str, Any] | None:
    """The job that a stats.json tells of; None where it is none of ours."""
    try:
        found = json.loads(data or b"")["job"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _finished(places: Destination, wanted: Identity) -> stats.Counts | None:
    """The counts of the same job, where it is finished."""
    data = places.read(STATS)
    if data is None:
        return None
    try:
        counts, values = stats.from_json(data)
    except ValueError:
        return None
    if values.get("job") != wanted.to_json():
        return None
    log.info("%s is finished: the same command made it before", places.root)
    return counts
