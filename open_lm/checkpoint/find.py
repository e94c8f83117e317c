"""What a path means that a run is to go on from: a `step_<n>` folder, an `epoch_N.pt`, or a run folder's newest of the two."""

from __future__ import annotations

import logging
from pathlib import Path

from open_lm import storage
from open_lm.checkpoint.epoch_pair import is_pair, newest_pair, read_pair
from open_lm.checkpoint.run_state import RunState, newest_run_state, read_run_state
from open_lm.checkpoint.state_folder import STATE_FILE, run_states

Found = tuple[str, RunState]
"""Path or URL, and its plain part."""


def newest_state(folder: Path, elsewhere: Found | None = None) -> Found | None:
    """The newest whole state of a local checkpoints folder: a run state, unless OpenLM's files are of a later step. None for none.

    Args:
        elsewhere: a state of the same run in another place, which is taken unless one here is of a later step.

    Raises:
        ValueError: there are checkpoints, and none can be resumed.
    """
    if elsewhere:
        try:
            here = newest_state(folder) if run_states(folder) or any(folder.glob("optimizer_*.pt")) else None
        except ValueError as error:
            logging.warning(f"{error}; passed over")
            return elsewhere
        return here if here and here[1].step > elsewhere[1].step else elsewhere
    pairs = any(folder.glob("optimizer_*.pt"))
    found, broken = None, None
    try:
        found = newest_run_state(folder)
    except ValueError as error:
        if not pairs:
            raise
        broken = error
        logging.warning(f"{error}; trying the epoch_N.pt beside them")
    if pairs or not run_states(folder):
        try:
            pair = newest_pair(folder, with_optimizer=found is not None)
        except ValueError as error:
            if found is None:
                raise ValueError(f"--resume latest: {error}") from None
            logging.warning(f"{error}; passed over")
            return found
        if pair and (found is None or pair[1].step > found[1].step):
            return str(pair[0]), pair[1]
    if found is None and broken:
        raise broken
    return found


def read_state(path: str) -> Found:
    """The state that a path means. Raises ValueError where there is none that can be resumed."""
    if is_pair(path):
        return path, read_pair(path)
    if storage.is_remote(path):
        return _read_remote(path.rstrip("/"))
    folder = storage.local_path(path)
    if (folder / STATE_FILE).is_file() or not folder.is_dir() or folder.name.startswith("step_"):
        return str(folder), read_run_state(folder)
    found = newest_state(folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder)
    if found is None:
        raise ValueError(f"checkpoint {path}: the folder holds neither step_<n> nor epoch_N.pt")
    return found


def _read_remote(url: str) -> Found:
    """A step_<n> behind a URL, or the newest of a folder of them."""
    if url.rpartition("/")[2].startswith("step_"):
        return url, read_run_state(url)
    if url.startswith(("http://", "https://")):
        raise ValueError("a web server can't list a folder; give the URL of its step_<n>")
    found = newest_run_state(url) or newest_run_state(storage.join(url, "checkpoints"))
    if found is None:
        raise ValueError(f"checkpoint {url}: holds no step_<n>; a pair of epoch_N.pt and optimizer_N.pt has to be on a disk")
    return found
