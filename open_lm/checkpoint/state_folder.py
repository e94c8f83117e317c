"""Folders of run states, on a disk or behind a URL: what is whole, how a new one becomes so, how an old one goes.

`step_<n>/` has files of shards (`<process>_<number>-<attempt>.distcp`), `.metadata`, and `state.json`, without which it doesn't exist.
On a disk it is made under a hidden name and renamed; behind a URL `state.json` comes last and goes first. `latest` (a link, or an object
with the name) moves when its target is whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

from open_lm import storage
from open_lm.checkpoint.safe_metadata import METADATA_FILE

STATE_FILE = "state.json"
WRITTEN = re.compile(rf"{re.escape(STATE_FILE)}|{re.escape(METADATA_FILE)}|[^/]+\.distcp")
"""Files of a run state."""
_LEFT_OVER = re.compile(r"\.step_\d+(\.\w+)*\.tmp")
_NO_LATEST = "is not what a run makes, and stays; move it away, so that it can name the newest run state"
_THREADS = 8
REMOTE_PART_BYTES = 256 << 20
"""A part for a URL is made in memory, of at most so many bytes or one tensor; on a disk a process writes one file."""


class NewState(Protocol):
    """A run state that is being written; every process has one of the same attempt."""

    part_bytes: int | None
    """Size at which a part ends, None for one part."""
    url: str
    """Where it will be."""

    def part(self, name: str, size: int = 0) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file of shards, of about `size` bytes: durable when the context ends."""
        ...

    def publish(self, metadata: bytes, state: bytes) -> None:
        """On the first process, when all parts are there: make it whole, then move `latest`."""
        ...

    def abandon(self) -> None:
        """On the first process: remove what is there of it."""
        ...


def read_state_file(state: str) -> dict[str, Any]:
    """The content of a run state's state.json. Raises ValueError where it isn't read."""
    data = b""
    try:
        return dict(json.loads(data := storage.read_bytes(storage.join(state, STATE_FILE))))
    except OSError as error:
        raise ValueError(f"checkpoint {state}: no whole run state: {error}") from None
    except (ValueError, TypeError):
        other = storage.instead_of("a run state's", data[: storage.FIRST_BYTES])
        raise ValueError(f"checkpoint {state}: {STATE_FILE} {other}") from None


def new_state(folder: str, step: int, attempt: str) -> NewState:
    """A run state to write.

    Args:
        attempt: the same on all processes, and never used before.
    """
    return _RemoteState(folder, step, attempt) if storage.is_remote(folder) else _LocalState(storage.local_path(folder), step, attempt)


class _LocalState:
    part_bytes: int | None = None

    def __init__(self, folder: Path, step: int, attempt: str):
        self.folder, self.target = folder, folder / f"step_{step}"
        self.temporary = folder / f".step_{step}.{attempt}.tmp"
        self.url = str(self.target)

    @contextlib.contextmanager
    def part(self, name: str, size: int = 0) -> Iterator[IO[bytes]]:
        path = self.temporary / name
        with storage.tell_full_disk(self.target / name, size, path):
            self.temporary.mkdir(parents=True, exist_ok=True)
        with storage.tell_full_disk(self.target / name, size, path), open(path, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def publish(self, metadata: bytes, state: bytes) -> None:
        for name, data in ((METADATA_FILE, metadata), (STATE_FILE, state)):
            with self.part(name) as file:
                file.write(data)
        _flush_folder(self.temporary)
        old, foreign = self.temporary.with_suffix(".old.tmp"), list[str]()
        if os.path.lexists(self.target):  # a step that is saved again, on a run's second way past it
            if self.target.is_symlink() or not self.target.is_dir():
                raise FileExistsError(f"{self.target}: is not what a run makes; move it away")
            foreign = foreign_files(self.target)
            os.replace(self.target, old)
        os.replace(self.temporary, self.target)
        for name in foreign:
            os.renames(old / name, self.target / name)
        link, latest = self.temporary.with_suffix(".latest.tmp"), self.folder / "latest"
        if os.path.lexists(latest) and not _is_latest(str(latest.readlink()) if latest.is_symlink() else ""):
            logging.warning(f"{latest}: {_NO_LATEST}")
        else:
            link.symlink_to(self.target.name)
            os.replace(link, latest)
        _flush_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def abandon(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)


def _is_latest(target: str) -> bool:
    return re.fullmatch(r"step_\d+", target.strip()) is not None


def foreign_files(state: Path) -> list[str]:
    """What lies in the folder of a run state, or in its place, that no run wrote."""
    if state.is_symlink() or not state.is_dir():
        return [state.name] if os.path.lexists(state) else []
    return [name for name in storage.contents(state) if not WRITTEN.fullmatch(name)]


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _RemoteState:
    part_bytes: int | None = REMOTE_PART_BYTES

    def __init__(self, folder: str, step: int, attempt: str):
        self.folder, self.attempt = folder, attempt
        self.url = storage.join(folder, f"step_{step}")

    @contextlib.contextmanager
    def part(self, name: str, size: int = 0) -> Iterator[IO[bytes]]:
        file = io.BytesIO()
        yield file
        storage.write_bytes(storage.join(self.url, name), file.getvalue())

    def publish(self, metadata: bytes, state: bytes) -> None:
        storage.remove(storage.join(self.url, STATE_FILE))
        for name, data in ((METADATA_FILE, metadata), (STATE_FILE, state)):
            storage.write_bytes(storage.join(self.url, name), data)
        latest = storage.join(self.folder, "latest")
        if storage.exists(latest) and not _is_latest(storage.read_bytes(latest)[:99].decode(errors="replace")):
            logging.warning(f"{latest}: {_NO_LATEST}")
        else:
            storage.write_bytes(latest, self.url.rpartition("/")[2].encode() + b"\n")
        self._remove(lambda name: name.endswith(".distcp") and self.attempt not in name)

    def abandon(self) -> None:
        self._remove(lambda name: self.attempt in name)

    def _remove(self, doomed: Callable[[str], bool]) -> None:
        for stored in storage.list_files(self.url + "/"):
            if doomed(stored.url.rpartition("/")[2]):
                storage.remove(stored.url)


def run_states(folder: str | Path) -> list[str]:
    """The step_<n> folders, newest first. Behind a URL those with a state.json."""
    folder = str(folder)
    found: dict[int, str] = {}
    if storage.is_remote(folder):
        for stored in storage.list_files(storage.join(folder, f"step_*/{STATE_FILE}")):
            url = stored.url.rpartition("/")[0]
            if match := re.fullmatch(r"step_(\d+)", url.rpartition("/")[2]):
                found[int(match.group(1))] = url
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in storage.local_path(folder).iterdir():
                if match := re.fullmatch(r"step_(\d+)", path.name):
                    found[int(match.group(1))] = str(path)
    return [found[step] for step in sorted(found, reverse=True)]


def step_of(state: str) -> int:
    """The step in the name of a run state."""
    return int(state.rpartition("/")[2].removeprefix("step_"))


def remove_run_state(state: str) -> list[str]:
    """Remove a run state; what is left after a crash in the middle is not taken for one.

    Returns:
        What lies there that no run wrote, where there is such: the state then stays.
    """
    if not storage.is_remote(state):
        path = storage.local_path(state)
        if foreign := foreign_files(path):
            return foreign
        doomed = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed)
        return []
    files = [stored.url for stored in storage.list_files(state + "/")]
    if foreign := [name for url in files if not WRITTEN.fullmatch(name := url[len(state) + 1 :])]:
        return foreign
    storage.remove(storage.join(state, STATE_FILE))
    for url in (*files, storage.join(state, METADATA_FILE)):
        storage.remove(url)
    return []


def restore_interrupted(folder: str) -> None:
    """Put back a local run state that was to be replaced by another of its step, where the process died in between.

    One that was to be removed (`remove_run_state`) has no attempt in its name and stays removed.
    """
    if storage.is_remote(folder):
        return
    for old in sorted(storage.local_path(folder).glob(".step_*.old.tmp")):
        match = re.fullmatch(r"\.(step_\d+)\.[^.]+\.old\.tmp", old.name)
        if match and (old / STATE_FILE).is_file() and not (old.parent / match[1]).exists():
            os.replace(old, old.parent / match[1])


def remove_leftovers(folder: str) -> None:
    """Remove what killed saves left. Only for the one run that writes there."""
    if not storage.is_remote(folder):
        for path in storage.local_path(folder).glob(".step_*.tmp"):
            if _LEFT_OVER.fullmatch(path.name) and not (path.is_dir() and foreign_files(path)):
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                    path.unlink()
        return
    whole = set(run_states(folder))
    for stored in storage.list_files(storage.join(folder, "step_*/*.distcp")):
        if stored.url.rpartition("/")[0] not in whole:
            storage.remove(stored.url)


def sizes(state: str, names: Collection[str]) -> dict[str, int]:
    """Bytes of those files of a run state that are there, the hidden .metadata included; a web server can't list and is asked for each."""
    if state.startswith(("http://", "https://")):
        with ThreadPoolExecutor(_THREADS) as pool:
            told = pool.map(_size, [storage.join(state, name) for name in names])
        return {name: size for name, size in zip(names, told, strict=True) if size is not None}
    stored = storage.list_files(state.rstrip("/") + "/")
    found = {one.url.rpartition("/")[2]: one.size for one in stored}
    with contextlib.suppress(FileNotFoundError):
        found[METADATA_FILE] = storage.size(storage.join(state, METADATA_FILE))
    return found


def _size(url: str) -> int | None:
    try:
        return storage.size(url)
    except FileNotFoundError:
        return None
