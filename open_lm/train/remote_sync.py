"""Copies a run folder to a URL while the run goes on (--remote-sync): a thread of the first process.

Whole files only: logs as they were at one moment, up to their last whole line; run states when they are whole, `state.json` last, then
`latest`; nothing hidden or temporary. What didn't change since it was copied is not copied again. What the run itself deleted of its
checkpoints goes from the copy too, once the copy has another one of the same kind. Faults are warnings; the run never waits for the
remote but at its end.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from open_lm import storage
from open_lm.checkpoint.state_folder import STATE_FILE, run_states
from open_lm.train.remote_folder import Record, RemoteFolder, signature

LATEST = "checkpoints/latest"
_CHECKPOINT = re.compile(r"checkpoints/(step_\d+/.*|(\w[\w.-]*)_\d+\.pt)")
_LINES = (".log", ".jsonl")
_FAILURES = 3  # files that may fail, each after its attempts, before a pass gives up
_LARGE = 16 << 20


class RemoteSync:
    """A context: copies from its beginning to its end, and once more at a clean end. `missing` then says what the copy lacks."""

    def __init__(self, folder: Path, remote: RemoteFolder, every: float):
        self.folder, self.remote, self.every = folder, remote, every
        self.record = Record(folder, remote.url)
        self.missing: list[str] = []
        """Names of files that the last pass could not copy."""
        self.problem = ""
        self._there: dict[str, int] | None = None  # what the copy had when it was first looked at, and what was added since
        self._ending, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="remote-sync", daemon=True)

    def __enter__(self) -> RemoteSync:
        logging.info(f"Remote sync: this folder is copied to {self.remote.url} every {self.every:.0f} s and at the end")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """After an exception nothing more is begun, so that the processes end at once."""
        if kind is not None and not issubclass(kind, SystemExit):
            self._stop.set()
            self._ending.set()
            return
        logging.info(f"Remote sync: the last files go to {self.remote.url}")
        self._ending.set()
        self._thread.join()
        if self.missing:
            logging.error(self.what_is_missing())  # also where the run ends with a code of its own

    def what_is_missing(self) -> str:
        """One line for the user."""
        names = ", ".join(self.missing[:5]) + (f" and {len(self.missing) - 5} more" if len(self.missing) > 5 else "")
        return (
            f"--remote-sync {self.remote.url}: the copy is not complete ({self.problem}); missing or old there: {names}. All of it is in "
            f"{self.folder}; give the same command with --resume latest to copy the rest"
        )

    def _run(self) -> None:
        last = False
        while not last and not self._stop.is_set():
            last = self._ending.is_set()
            try:
                self.sync()
            except Exception as error:  # the thread must live as long as the run
                self.missing, self.problem = self.missing or ["everything that changed"], str(error) or type(error).__name__
                logging.debug("remote sync", exc_info=True)
            if self.missing and not last and not self._stop.is_set():
                waits = f"{len(self.missing)} files wait for the next copy in {self.every:.0f} s"
                logging.warning(f"--remote-sync {self.remote.url}: {self.problem}; the training goes on, {waits}")
            if not last:
                self._ending.wait(self.every)

    def sync(self) -> None:
        """One pass: copy what changed, then remove what the run deleted."""
        missing: list[str] = []
        failures = 0
        try:
            if self._there is None:
                there = self.remote.files()
                self.record.keep_those_of(self.remote, there)
                self._there = there
        except (OSError, ValueError) as error:
            self.problem, failures = str(error), _FAILURES
        for names in units(self.folder):
            if self._stop.is_set():
                return
            if all(self._is_copied(name) for name in names):
                continue
            try:
                if failures >= _FAILURES:
                    missing += names
                else:
                    self._copy(names)
            except (OSError, ValueError) as error:
                if not isinstance(error, storage.StorageError) and not (self.folder / names[0]).exists():
                    continue  # the run deleted it meanwhile
                self.problem, failures = str(error), failures + 1
                missing += names
        try:
            if not missing:
                self._point_latest()
                self._tidy()
            self.record.save()
        except (OSError, ValueError) as error:
            self.problem, missing = str(error), missing or [LATEST]
        self.missing = missing

    def _is_copied(self, name: str) -> bool:
        try:
            return self.record.files.get(name) == signature((self.folder / name).stat())
        except FileNotFoundError:
            return False

    def _copy(self, names: list[str]) -> None:
        """One file, or the files of a run state of which the last makes it whole."""
        assert self._there is not None
        changed = [name for name in names if not self._is_copied(name)]
        if len(names) > 1 and changed != names[-1:] and names[-1] in self._there:
            self.remote.remove(names[-1])  # another state of this step: it is not whole from here on
            self._forget(names[-1])
        for name in changed if len(names) == 1 else [*[n for n in changed if n != names[-1]], names[-1]]:
            self.record.files[name] = self._upload(name)
            self._there[name] = self.record.files[name][0]
            if self._there[name] >= _LARGE:
                self.record.save()

    def _upload(self, name: str) -> tuple[int, int]:
        path, url = self.folder / name, self.remote.url_of(name)
        if _CHECKPOINT.fullmatch(name):
            before = signature(path.stat())
            storage.upload(path, url, self._stop)
            return before
        with tempfile.TemporaryDirectory() as place:
            snapshot = Path(place) / path.name
            taken = take_snapshot(path, snapshot)
            storage.upload(snapshot, url, self._stop)
        return taken

    def _point_latest(self) -> None:
        """`latest` names the target of the run folder's link, when its copy is whole."""
        link = self.folder / LATEST
        if not link.is_symlink():
            return
        target = str(link.readlink())
        place = (0, int(target.rpartition("_")[2])) if target.rpartition("_")[2].isdigit() else (0, 0)
        if f"checkpoints/{target}/{STATE_FILE}" in self.record.files and self.record.files.get(LATEST) != place:
            storage.write_bytes(self.remote.url_of(LATEST), target.encode())
            self.record.files[LATEST] = place

    def _tidy(self) -> None:
        """Remove copies of checkpoints that the run deleted, if the copy has others of their kind that are still in the run folder."""
        kept = {kind_of(name) for name in self.record.files if (self.folder / name).exists()} - {None}
        gone = [name for name in self.record.files if kind_of(name) in kept and not (self.folder / name).exists()]
        for name in sorted(gone, key=lambda name: not name.endswith(STATE_FILE)):
            self.remote.remove(name)
            self._forget(name)

    def _forget(self, name: str) -> None:
        self.record.files.pop(name, None)
        if self._there is not None:
            self._there.pop(name, None)


@contextmanager
def copied(folder: Path, remote: RemoteFolder | None, every: float) -> Iterator[None]:
    """Copy a run folder while the body runs; nothing where `remote` is None. Raises ValueError at a clean end with an incomplete copy."""
    if remote is None:
        yield
        return
    with RemoteSync(folder, remote, every) as sync:
        yield
    if sync.missing:
        raise ValueError(sync.what_is_missing())


def kind_of(name: str) -> str | None:
    """ "step", "epoch", "optimizer", ... for a file of a checkpoint; None for any other, which is never deleted."""
    found = _CHECKPOINT.fullmatch(name)
    return None if found is None else found[2] or "step"


def units(folder: Path) -> Iterator[list[str]]:
    """What is whole in a run folder, as names that are copied together: logs and other files, run states (newest first), weights."""
    plain = list(_files(folder, folder))
    yield from ([name] for name in plain if kind_of(name) is None)
    for state in map(Path, run_states(folder / "checkpoints")):
        mark = f"checkpoints/{state.name}/{STATE_FILE}"
        names = [name for name in _files(folder, state, hidden=True) if name != mark]
        if (folder / mark).exists():
            yield [*names, mark]
    yield from ([name] for name in plain if kind_of(name) not in (None, "step"))


def _files(folder: Path, below: Path, hidden: bool = False) -> Iterator[str]:
    """Names of files, sorted, without links, temporary files and, unless asked for, hidden ones."""
    for here, folders, names in os.walk(below):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(here) / name
            if not name.endswith(".tmp") and (hidden or not name.startswith(".")) and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def take_snapshot(path: Path, copy: Path) -> tuple[int, int]:
    """A copy of a file that may grow meanwhile, as it was at one moment; of lines, only whole ones. Returns the file's signature then."""
    with open(path, "rb") as source, open(copy, "wb") as target:
        taken = signature(os.fstat(source.fileno()))
        left = taken[0]
        while left and (data := source.read(min(left, 1 << 20))):
            target.write(data)
            left -= len(data)
    if path.name.endswith(_LINES):
        _cut_last_line(copy)
    return taken


def _cut_last_line(path: Path) -> None:
    """Shorten a file to the end of its last whole line."""
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65_536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                file.truncate(start + at + 1)
                return
            end = start
        file.truncate(0)
