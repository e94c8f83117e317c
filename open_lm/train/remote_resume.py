"""A run that goes on from the copy of its folder (--remote-sync), on a machine that has an older state of it, or nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from open_lm import storage
from open_lm.checkpoint.find import newest_state
from open_lm.checkpoint.run_state import RunState, read_run_state
from open_lm.checkpoint.state_folder import STATE_FILE, foreign_files
from open_lm.progress import Progress
from open_lm.train.remote_folder import Record, RemoteFolder, signature, whole_states
from open_lm.train.remote_sync import LATEST, kind_of
from open_lm.train.run_folder import check_free, is_written

_THREADS = 4
_BUFFER = 1 << 20
_EPOCH = re.compile(r"checkpoints/epoch_(\d+)\.pt")


def newest_of_both(
    folder: Path, remote: RemoteFolder, elsewhere: tuple[str, RunState] | None = None, fetch: bool = True
) -> tuple[str, RunState] | None:
    """The newest whole state of a run folder and its copy, in the run folder; a run state of the copy is fetched, with the logs up to it.

    For the first process. None where neither has a checkpoint.

    Args:
        elsewhere: of the same run, in --checkpoint-dir.
        fetch: False to look only: a state of the copy stays there.

    Raises:
        ValueError: there are run states, and none can be had; or the copy can't be looked at and the run folder has none.
    """
    here, broken = None, ""
    try:
        here = newest_state(folder / "checkpoints", elsewhere)
    except ValueError as error:
        broken = str(error)
    try:
        names = remote.files()
        steps = [step for step in whole_states(names) if here is None or step > here[1].step]
        for step in steps:
            try:
                path = str(fetch_state(folder, remote, step)) if fetch else remote.url_of(f"checkpoints/step_{step}")
                state = read_run_state(path)
            except ValueError as error:
                logging.warning(f"{error}; trying the checkpoint before it")
                continue
            if fetch:
                fetch_logs(folder, remote, names)
            return path, state
    except (OSError, ValueError) as error:
        if here is None:
            remedy = "without it a run whose states may be there would start again; mend that, or leave --remote-sync out"
            raise ValueError(f"--remote-sync {remote.url}: {error}; {remedy}") from None
        logging.warning(f"--remote-sync {remote.url}: {error}; going on from {here[0]}")
    else:
        if here is None and (broken or steps):
            raise ValueError(broken or f"--resume latest: no checkpoint of {remote.url} is whole; remove them to start from the beginning")
        _refuse_pairs(folder, remote, names, here[1] if here else None)
        if fetch and not (folder / "out.log").exists():
            fetch_logs(folder, remote, names)
    return here


def _refuse_pairs(folder: Path, remote: RemoteFolder, names: dict[str, int], here: RunState | None) -> None:
    """Raises ValueError where the copy has an epoch_N.pt to go on from that is later than the state at hand; those are not fetched."""
    epochs = [int(found[1]) for name in names if (found := _EPOCH.fullmatch(name))]
    if here:
        known = max(epochs, default=0) if here.epoch is None else here.epoch
        epochs = [epoch for epoch in epochs if f"checkpoints/optimizer_{epoch}.pt" in names and epoch > known]
    if epochs and not whole_states(names):
        remedy = f"copy its checkpoints/ and params.txt into {folder} and give the same command, or use another --name"
        raise ValueError(f"--remote-sync {remote.url}: holds epoch_{max(epochs)}.pt, later than what is here, and no run state; {remedy}")


def fetch_state(folder: Path, remote: RemoteFolder, step: int, trust: bool = False) -> Path:
    """The run state of a step in the run folder: as it is there if it is whole, else from the copy, compared with its checksums.

    Any process may call this; of several on one machine one fetches and the others wait.

    Args:
        trust: one that is in the run folder is taken as whole, without reading it.

    Raises:
        ValueError: the copy is not whole.
        OSError: it can't be reached, or there is no room.
    """
    target = folder / "checkpoints" / f"step_{step}"
    temporary = target.with_name(f".{target.name}.fetch")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(".fetch.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_whole(target, trust):
            return target
        if foreign := [*foreign_files(target), *foreign_files(temporary)]:
            raise ValueError(f"{target}: holds {', '.join(foreign[:3])}, which no run wrote, and no whole run state; move it away")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            _fetch_files(remote, f"checkpoints/{target.name}", temporary)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _remember(folder, remote, target)
    logging.info(f"Fetched {target} from {remote.url}")
    return target


def see_state(folder: Path, remote: RemoteFolder, step: int) -> None:
    """On every process, after the first one has the state: fetch it where its file system isn't seen. Raises ValueError."""
    if not (folder / "checkpoints" / f"step_{step}" / STATE_FILE).is_file():
        try:
            fetch_state(folder, remote, step, trust=True)
        except OSError as error:
            raise ValueError(f"--remote-sync {error}") from None


def _is_whole(state: Path, trust: bool) -> bool:
    if not (state / STATE_FILE).is_file():
        return False
    try:
        return trust or read_run_state(state) is not None
    except ValueError:
        return False


def _fetch_files(remote: RemoteFolder, state: str, place: Path) -> None:
    """All files of a run state into a local folder, `state.json` last."""
    mark = storage.read_bytes(remote.url_of(f"{state}/{STATE_FILE}"))
    try:
        files = {str(name): (int(about["bytes"]), str(about["sha256"])) for name, about in json.loads(mark)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {remote.url_of(state)}: no whole run state: {error}") from None
    if outside := [name for name in files if Path(name).name != name]:
        raise ValueError(f"checkpoint {remote.url_of(state)}: is not read: it names a file outside its folder ({outside[0]})")
    with ThreadPoolExecutor(_THREADS) as pool:
        got = pool.map(lambda name: _fetch(remote.url_of(f"{state}/{name}"), place / name), files)
        for (name, expected), found in zip(files.items(), Progress("fetching", len(files), "files").over(got), strict=True):
            if found != expected:
                raise ValueError(f"checkpoint {remote.url_of(state)}: {name} is not as it was written")
    storage.write_bytes(str(place / STATE_FILE), mark)


def _fetch(url: str, path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file that is copied here. Raises ValueError where it is absent: its state is not whole."""
    digest, size = hashlib.sha256(), 0
    try:
        with storage.open_read(url) as source, storage.tell_full_disk(path), open(path, "wb") as target:
            while data := source.read(_BUFFER):
                target.write(data)
                digest.update(data)
                size += len(data)
            target.flush()
            os.fsync(target.fileno())
    except FileNotFoundError as error:
        raise ValueError(f"{error}") from None
    return size, digest.hexdigest()


def _remember(folder: Path, remote: RemoteFolder, state: Path) -> None:
    """What was fetched need not be copied back."""
    record = Record(folder, remote.url)
    for path in state.iterdir():
        record.files[path.relative_to(folder).as_posix()] = signature(path.stat())
    record.save()


def fetch_logs(folder: Path, remote: RemoteFolder, names: dict[str, int]) -> None:
    """The logs of the copy replace those of the run folder, so that they go on from its state; checkpoints are left where they are, and so
    is what no run writes.
    """
    for name, size in names.items():
        path = folder / name
        theirs = kind_of(name) is not None or name == LATEST or not is_written(name)
        if theirs or not path.resolve().is_relative_to(folder.resolve()) or (path.is_file() and path.stat().st_size == size):
            continue
        with storage.open_read(remote.url_of(name)) as source, storage.atomic_write(path, durable=False) as target:
            shutil.copyfileobj(source, target, _BUFFER)


def check_copy(remote: RemoteFolder, overwrite: bool, resuming: bool = False) -> None:
    """Raises ValueError where the copy can't be asked, or holds what is not to be overwritten. A copy behind a URL that a run resumes from
    is asked later, since that run may go on without it.
    """
    if resuming and storage.is_remote(remote.url):
        return
    try:
        files = remote.contents()
    except (OSError, ValueError) as error:
        raise ValueError(f"--remote-sync {error}") from None
    check_free("--remote-sync", remote.url, files, overwrite, resuming)


def clear_copy(remote: RemoteFolder) -> None:
    """For a run that begins where it may. Raises ValueError where that fails."""
    try:
        remote.clear()
    except OSError as error:
        raise ValueError(f"--remote-sync {error}") from None
