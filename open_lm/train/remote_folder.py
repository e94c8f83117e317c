"""The copy of a run folder behind a URL: what lies there, and what this machine put there.

A copy has the names of the run folder. Of run states, `state.json` is written last and removed first, so that a `step_<n>` with one is
whole; `checkpoints/latest`, a link in the run folder, is a file there that holds the name of its target.
"""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

from open_lm import storage
from open_lm.checkpoint.state_folder import STATE_FILE
from open_lm.train.run_folder import removed_by_overwrite

RECORD = ".remote_sync.json"
Signature = tuple[int, int]
"""Bytes and time of change (ns) of a local file."""

_STATE = re.compile(rf"checkpoints/step_(\d+)/{re.escape(STATE_FILE)}")


class RemoteFolder:
    """`<--remote-sync>/<name>/`: an s3:// or other fsspec URL, or a local folder."""

    def __init__(self, base: str, name: str):
        self.url = storage.join(base if storage.is_remote(base) else str(storage.local_path(base)), name)

    def url_of(self, name: str) -> str:
        """The url of a file of the run folder."""
        return storage.join(self.url, name)

    def files(self) -> dict[str, int]:
        """Bytes by name of all that lies there but hidden files. Raises StorageError, ValueError."""
        return {stored.url[len(self.url) + 1 :]: stored.size for stored in storage.list_files(self.url + "/")}

    def remove(self, name: str) -> None:
        """Remove a file; absent ones are fine."""
        storage.remove(self.url_of(name))

    def contents(self) -> dict[str, int]:
        """Bytes by name of all that lies there; behind a URL all but hidden files. Raises StorageError, ValueError."""
        return self.files() if storage.is_remote(self.url) else storage.contents(storage.local_path(self.url))

    def clear(self) -> None:
        """Remove what a run wrote, the files that make run states whole first."""
        names = removed_by_overwrite(self.contents())
        names.sort(key=lambda name: _STATE.fullmatch(name) is None)
        if not storage.is_remote(self.url):
            storage.remove_files(storage.local_path(self.url), names)
            return
        hidden = [f"{name.rpartition('/')[0]}/.metadata" for name in names if _STATE.fullmatch(name)]
        for name in [*names[: len(hidden)], *hidden, *names[len(hidden) :]]:
            self.remove(name)


def whole_states(names: dict[str, int]) -> list[int]:
    """The steps of the run states among the files of a copy that are whole, newest first."""
    return sorted((int(found[1]) for name in names if (found := _STATE.fullmatch(name))), reverse=True)


class Record:
    """Which files of a run folder, as they are now, have been compared with their copies: `.remote_sync.json` in the run folder.

    It lets a restarted run copy only what changed, and remove from the copy what it removed itself; never what others put there.
    """

    def __init__(self, folder: Path, url: str):
        self.path, self.url = folder / RECORD, url
        self.files: dict[str, Signature] = {}
        self._lock = threading.Lock()
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["url"] == url:
                self.files = {name: (int(size), int(time)) for name, (size, time) in content["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.files = {}  # everything is copied again

    def keep_those_of(self, remote: RemoteFolder, there: dict[str, int]) -> None:
        """Forget the files that the copy lacks, or has in another size."""
        for name, (size, _) in list(self.files.items()):
            hidden = name.rpartition("/")[2].startswith(".")
            held = _size(remote.url_of(name)) if hidden else there.get(name)
            if held != size:
                del self.files[name]

    def save(self) -> None:
        """Write it down."""
        with self._lock, storage.atomic_write(self.path, "w", durable=False) as file:
            json.dump({"url": self.url, "files": self.files}, file)


def signature(status: os.stat_result) -> Signature:
    """Of a local file."""
    return status.st_size, status.st_mtime_ns


def _size(url: str) -> int | None:
    try:
        return storage.size(url)
    except FileNotFoundError:
        return None
