"""Copies a run folder to a URL while the run goes on (--remote-sync): a thread of the first process.

Whole files only: logs as they were at one moment, up to their last whole line; run states when they are whole, `state.json` last, then
`latest`; nothing hidden or temporary. What didn't change since it was copied is not copied again. What the run itself deleted of its
checkpoints goes from the copy too, once the copy has another one of the same kind; what it deletes while that is copied stays on the disk
until then, under a second name. Faults are warnings; the run never waits for the remote but at its end.
"""

from __future__ import annotations

import contextlib
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
from open_lm.params.fields import counted
from open_lm.progress import Progress
from open_lm.train.remote_folder import Record, RemoteFolder, signature, whole_states

LATEST = "checkpoints/latest"
HELD = ".remote_sync.held"
"""In a run folder: second names of the checkpoint files that are being copied."""
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
        with Progress("remote sync"):
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
                waits = f"the next copy in {self.every:.0f} s takes what is left, {counted(len(self.missing), 'file')}"
                logging.warning(f"--remote-sync {self.remote.url}: {self.problem}; the training goes on, {waits}")
            if not last:
                self._ending.wait(self.every)

    def sync(self) -> None:
        """One pass: copy what changed, then remove what the run deleted."""
        missing: list[str] = []
        failures, overtaken = 0, False
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
                    overtaken = overtaken or kind_of(names[0]) == "step"
                    continue  # the run deleted it meanwhile
                self.problem, failures = str(error), failures + 1
                missing += names
        if overtaken and not any(
            kind_of(name) == "step" and self._is_copied(name) for name in self.record.files if name.endswith(STATE_FILE)
        ):
            states = "run states are deleted faster than they are copied; none of this pass is whole there. Keep more (--keep-last)"
            logging.warning(f"--remote-sync {self.remote.url}: {states}, or save less often")
        try:
            if not missing:
                self._point_latest()
                self._tidy()
            self.record.save()
        except (OSError, ValueError) as error:
            self.problem, missing = str(error), missing or [LATEST]
        self.missing = missing

    def _is_copied(self, name: str, folder: Path | None = None) -> bool:
        try:
            return self.record.files.get(name) == signature(((folder or self.folder) / name).stat())
        except FileNotFoundError:
            return False

    def _copy(self, names: list[str]) -> None:
        """One file, or the files of a run state of which the last makes it whole."""
        with held(self.folder, names) as folder:
            self._copy_from(folder, names)

    def _copy_from(self, folder: Path, names: list[str]) -> None:
        assert self._there is not None
        changed = [name for name in names if not self._is_copied(name, folder)]
        if len(names) > 1 and changed != names[-1:] and names[-1] in self._there:
            self.remote.remove(names[-1])  # another state of this step: it is not whole from here on
            self._forget(names[-1])
        for name in changed if len(names) == 1 else [*[n for n in changed if n != names[-1]], names[-1]]:
            self.record.files[name] = self._upload(folder, name)
            self._there[name] = self.record.files[name][0]
            if self._there[name] >= _LARGE:
                self.record.save()

    def _upload(self, folder: Path, name: str) -> tuple[int, int]:
        path, url = folder / name, self.remote.url_of(name)
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
        """`latest` names the target of the run folder's link when its copy is whole, else the newest that is."""
        link = self.folder / LATEST
        if not link.is_symlink():
            return
        target, whole = str(link.readlink()), whole_states(dict.fromkeys(self.record.files, 0))
        if f"checkpoints/{target}/{STATE_FILE}" not in self.record.files and whole:
            target = f"step_{whole[0]}"
        place = (0, int(target.rpartition("_")[2])) if target.rpartition("_")[2].isdigit() else (0, 0)
        if f"checkpoints/{target}/{STATE_FILE}" in self.record.files and self.record.files.get(LATEST) != place:
            storage.write_bytes(self.remote.url_of(LATEST), target.encode())
            self.record.files[LATEST] = place

    def _tidy(self) -> None:
        """Remove copies of checkpoints that the run deleted; of a kind of which it has none of these any more, the newest stays."""
        here = {kind_of(name) for name in self.record.files if whole_with(name) and (self.folder / name).exists()}
        newest: dict[str | None, int] = {}
        for name in filter(whole_with, self.record.files):
            newest[kind_of(name)] = max(number_of(name), newest.get(kind_of(name), 0))
        gone = [name for name in self.record.files if kind_of(name) in newest and not (self.folder / name).exists()]
        gone = [name for name in gone if kind_of(name) in here or number_of(name) != newest[kind_of(name)]]
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
    _release(folder / HELD)  # of a run that was killed
    if remote is None:
        yield
        return
    with RemoteSync(folder, remote, every) as sync:
        yield
    if sync.missing:
        raise ValueError(sync.what_is_missing())


@contextmanager
def held(folder: Path, names: list[str]) -> Iterator[Path]:
    """A folder in which these files of a run folder stay as they are whatever the run does to them: links, if they are checkpoints.

    Raises FileNotFoundError where one is gone.
    """
    place, linked = folder / HELD, kind_of(names[0]) is not None
    try:
        for name in names if linked else []:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / name, place / name)
    except FileNotFoundError:
        _release(place)
        raise
    except OSError:  # a file system without links
        linked = False
    try:
        yield place if linked else folder
    finally:
        _release(place)


def _release(place: Path) -> None:
    """Remove the second names."""
    with contextlib.suppress(OSError):
        storage.remove_files(place, [name for name in storage.contents(place) if kind_of(name) or name == "checkpoints/"])
        place.rmdir()


def whole_with(name: str) -> bool:
    """Whether a checkpoint is whole when this file of it is there."""
    return kind_of(name) is not None and (kind_of(name) != "step" or name.endswith(f"/{STATE_FILE}"))


def number_of(name: str) -> int:
    """The step or epoch of a file of a checkpoint."""
    found = re.search(r"_(\d+)(/|\.pt$)", name)
    assert found, name
    return int(found[1])


def kind_of(name: str) -> str | None:
    """ "step", "epoch", "optimizer", ... for a file of a checkpoint; None for any other, which is never deleted."""
    found = _CHECKPOINT.fullmatch(name)
    return None if found is None else found[2] or "step"


def units(folder: Path) -> Iterator[list[str]]:
    """What is whole in a run folder, as names that are copied together: logs and other files, run states (newest first), weights."""
    plain = list(_files(folder, folder))
    plain.sort(key=lambda name: name != "params.txt")  # first what proves that the copy is one of a run, wherever copying ends
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
    with open(path, "rb") as source, storage.tell_full_disk(copy, path.stat().st_size), open(copy, "wb") as target:
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
