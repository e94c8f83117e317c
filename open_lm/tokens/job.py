"""A job: what decides the bytes that it writes, and the folder of work that a killed run leaves for the next one.

The folder holds `job.json` (the identity, whole before any work), the lock of the run that is at it, the input list, the spills, and a
note for each shard that is done. The same identity in another run means: go on. Another one is an error that says what differs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from open_lm import storage
from open_lm.params.fields import counted
from open_lm.tokens.destination import TOKENIZER, is_written
from open_lm.tokens.reading.inputs import InputFile
from open_lm.tokens.reading.stdin import SPOOLED
from open_lm.tokens.spill import spills_in
from open_lm.tokens.unit import DIFFERENCE

LAYOUT = 2
"""Of spills and of the order; a change makes old work useless."""

_JOB, _INPUTS, _LOCK, _WRITING = "job.json", "inputs.jsonl", "lock", "writing"
_OURS = re.compile(
    rf"{_JOB}|{_INPUTS}|{_LOCK}|{_WRITING}|{TOKENIZER}|{DIFFERENCE}|{SPOOLED}|\d{{9}}-\d{{7}}\.spill|shards/(\d{{9}}\.json)?"
    r"|upload/(provenance/)?(\d+/)?"
)
_NAMED = 3


@dataclass(frozen=True)
class Identity:
    """What decides the bytes of the output: options by flag name, and the input files."""

    options: dict[str, Any]
    inputs: dict[str, Any]
    """Number of files, their bytes, and a hash of their paths, sizes and stamps."""

    def to_json(self) -> dict[str, Any]:
        return {"layout": LAYOUT, **asdict(self)}


def identity(options: dict[str, Any], files: Sequence[InputFile]) -> Identity:
    """The identity of a job."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(_input_line(file).encode())
    return Identity(options, {"files": len(files), "bytes": sum(file.size for file in files), "sha256": digest.hexdigest()})


def _input_line(file: InputFile) -> str:
    return json.dumps([file.path, file.size, file.stamp]) + "\n"


def differences(found: dict[str, Any], wanted: Identity) -> list[str]:
    """In words, what differs between a job that was found and the one that is wanted."""
    if found.get("layout") != LAYOUT:
        return ["it was made by another version of this program"]
    options = found.get("options", {})
    names = sorted(options.keys() | wanted.options.keys())
    said = [
        f"{name} was {options.get(name)}, is {wanted.options.get(name)}" for name in names if options.get(name) != wanted.options.get(name)
    ]
    inputs = found.get("inputs", {})
    if inputs != wanted.inputs:
        sizes = [f"{counted(each.get('files') or 0, 'file')} of {each.get('bytes')} bytes" for each in (inputs, wanted.inputs)]
        said.append(
            f"--input-files were {sizes[0]}, are {sizes[1]}" if sizes[0] != sizes[1] else f"--input-files changed: {sizes[0]} as before"
        )
    return said


class WorkFolder:
    """The folder of a job's work."""

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; made when absent, and removed in the end where it holds no work: what this program put there, and the folder if
        nothing else is in it. Raises ValueError when another run is at it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--temp-dir: {self.path}, where the work goes, can't be made: {error.strerror}; give another") from None
        file = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"--output-dir: another run is at work in {self.path}; wait for it, or end it") from None
            try:
                yield
            finally:
                if self.found() is None or not self._worth_keeping():
                    with contextlib.suppress(OSError):
                        self._clear(keep=frozenset())
                        self.path.rmdir()
        finally:
            os.close(file)

    def found(self) -> dict[str, Any] | None:
        """The identity of the work that lies here, None for none."""
        try:
            return dict(json.loads((self.path / _JOB).read_bytes()))
        except FileNotFoundError:
            return None

    def changed_inputs(self, files: Sequence[InputFile]) -> list[str]:
        """In words, the first input files that are not what they were."""
        with open(self.path / _INPUTS, encoding="utf-8") as file:
            before = {path: (size, stamp) for path, size, stamp in map(json.loads, file)}
        now = {each.path: (each.size, each.stamp) for each in files}
        said = [f"{path} is new" for path in now.keys() - before.keys()]
        said += [f"{path} is missing" for path in before.keys() - now.keys()]
        said += [f"{path} changed" for path in now.keys() & before.keys() if now[path] != before[path]]
        said.sort()
        return [*said[:_NAMED], *([f"and {len(said) - _NAMED} more"] if len(said) > _NAMED else [])]

    def begin(self, wanted: Identity, files: Sequence[InputFile]) -> None:
        """An empty folder for a new job; what lies here is removed, but for input (a copy of standard input)."""
        self._clear(keep=frozenset({_LOCK, *(Path(file.path).name for file in files if Path(file.path).parent == self.path)}))
        with storage.atomic_write(self.path / _INPUTS, "w") as file:
            file.writelines(_input_line(each) for each in files)
        with storage.atomic_write(self.path / _JOB, "w") as file:
            json.dump(wanted.to_json(), file)

    @property
    def writing(self) -> bool:
        """True once what lay in the output folder before has been removed: whatever is there now is this job's."""
        return (self.path / _WRITING).exists()

    def note_writing(self) -> None:
        with storage.atomic_write(self.path / _WRITING):
            pass

    def clear_left_overs(self) -> None:
        """Remove what a killed process left of unfinished files."""
        storage.remove_files(self.path, [name for name in self._ours() if storage.finished_name(name) != name])

    def remove(self) -> None:
        """The job is done. Its identity goes first, so that a half-removed folder is none."""
        self._clear()

    def _worth_keeping(self) -> bool:
        return any(spills_in(self.path)) or (self.path / DIFFERENCE).exists()

    def _clear(self, keep: frozenset[str] = frozenset({_LOCK})) -> None:
        names = sorted(self._ours(), key=lambda name: (name == _LOCK, name != _JOB))
        storage.remove_files(self.path, [name for name in names if name not in keep])

    def _ours(self) -> list[str]:
        """What this program put there."""
        names = {name: storage.finished_name(name) for name in storage.contents(self.path)}
        staged = {name for name, whole in names.items() if whole.startswith("upload/") and is_written(whole.removeprefix("upload/"))}
        return [name for name, whole in names.items() if name in staged or _OURS.fullmatch(whole)]


def work_folder(root: str, temp_dir: str | None) -> Path:
    """Where the work for an output root lies: always the same place, so that the same command finds it again.

    Beside a local root, in the user's cache folder for a remote one, or in `temp_dir`.
    """
    remote = storage.is_remote(root)
    absolute = root if remote else str(storage.local_path(root).absolute())
    if temp_dir is None and not remote:
        path = Path(absolute)
        return path.parent / f".{path.name}-work"
    name = f"open_lm-work-{hashlib.sha256(absolute.encode()).hexdigest()[:16]}"
    cache = os.environ.get("OPENLM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "open_lm"
    return (storage.local_path(temp_dir) if temp_dir else Path(cache)) / name
