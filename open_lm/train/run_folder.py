"""The folder of a run, `<logs>/<name>/`: its name, `params.txt`, `config.yaml`, `out.log`, `checkpoints/`."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import IO, Any

from open_lm import storage
from open_lm.checkpoint.state_folder import WRITTEN
from open_lm.model.zoo import model_name
from open_lm.params import LogParams, Params, Problems
from open_lm.params.check import validates_only
from open_lm.tokenizer import TOKENIZER, TOKENIZER_CONFIG, Tokenizer
from open_lm.train.launcher import LOCK, lock_run_folder
from open_lm.train.parallel import World, from_first

_STATE = rf"(step_\d+|\.step_\d+(\.\w+)*\.(tmp|fetch))/({WRITTEN.pattern})?"
_WEIGHTS = r"(epoch|stats|optimizer|(ema|poly)(_[\d.e-]+){0,2})_\d+\.pt"
_WANDB = r"wandb/(settings|latest-run|debug[\w.-]*\.log|(offline-)?run-\d[^/]*/.*)?"
_WRITTEN = re.compile(
    r"out(-\d+)?\.log|(params|wandb_id)\.txt|config\.yaml|(metrics|skipped_steps)\.jsonl|(plans|tokenizer|tokenizer_config|ending)\.json"
    rf"|\.lock|\.remote_sync\.json|\.remote_sync\.held/(checkpoints/.*)?|tensorboard/([^/]*tfevents[^/]*)?|{_WANDB}|code/open_lm/.*\.(py|json)"
    rf"|checkpoints/(latest|(results|eval_tasks)\.jsonl|{_WEIGHTS}|{_STATE}|\.step_\d+\.\w+\.latest\.tmp|\.fetch\.lock)?"
)
"""Names in a run folder that a run writes; those of empty folders end in "/"."""
_TRAINED = re.compile(rf"ending\.json|checkpoints/(step_\d+/.*|{_WEIGHTS})")
_TRAINED_LINES = ("metrics.jsonl", "checkpoints/results.jsonl", "checkpoints/eval_tasks.jsonl")
_PROOFS = {
    "params.txt": re.compile(r"(?ms)(?=.*?^model: )(?=.*?^name: )"),
    "out.log": re.compile(r"\d{4}-\d\d-\d\d,\d\d:\d\d:\d\d \| [A-Z]+ \| "),
    LOCK: re.compile(r"\d+\n\S+ \d+ \d+\n$"),
}
"""What of a run folder proves that it is one, and how it looks; OpenLM's look the same."""
_SHOWN = 3
_FORMAT = logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Args:
        name: of the run, from the logs folder on.
    """

    path: Path
    name: str

    @property
    def checkpoints(self) -> Path:
        """Run states and weights."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """Every log line."""
        return self.path / "out.log"

    @property
    def metrics(self) -> Path:
        """One JSON object per log step."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """One JSON list per validation."""
        return self.checkpoints / "results.jsonl"


def choose_run_folder(params: Params) -> RunFolder:
    """The folder that --logs and --name mean; without a name, one from the time and the main options."""
    stamp = datetime.now().strftime("%Y_%m_%d-%H_%M_%S")
    model = Path(model_name(params.model.model)).stem
    made = f"{stamp}-model_{model}-lr_{params.optimizer.lr}-p_{params.parallel.precision}"
    logs = storage.local_path(params.log.logs)
    path = logs / from_first(params.log.name or made)
    return RunFolder(path, os.path.relpath(path, logs))


def check_places(folder: RunFolder, params: Params) -> None:
    """Raises UserError for a name that doesn't lie below --logs-dir, links resolved, for every folder that can't be written, and where
    --overwrite would remove what the run is to read.
    """
    problems, log, states, copy = Problems(), params.log, params.checkpoint.checkpoint_dir, params.checkpoint.remote_sync
    flag, places = f"--name {log.name or folder.name}", [str(folder.path)]
    problems.found += storage.unwritable("--logs-dir", log.logs, folder=True)
    if not problems.found:
        problems.attempt(_check_below, flag, log.logs, folder.path)
    if not problems.found:
        problems.found += storage.unwritable(f"{flag}:", str(folder.path), folder=True)
    problems.found += storage.unwritable("--checkpoint-dir", states, folder=True, urls=True)
    problems.found += storage.unwritable("--remote-sync", copy, folder=True, urls=True)
    if copy and not storage.is_remote(copy):
        there = storage.local_path(copy) / folder.name
        problems.attempt(_check_below, f"--remote-sync {copy}", copy, there)
        if _lies_in(there, folder.path) or _lies_in(folder.path, there):
            problems.found.append(f"--remote-sync {copy}: the copy would be in the run folder {folder.path}, or around it; give another")
    read = [("--pretrained", params.model.pretrained or ""), *(("--average", path) for path in params.averaging.average)]
    read += [("--resume", params.checkpoint.resume or "")] if validates_only(params.flat()) else []
    places += [storage.join(copy, folder.name)] if copy else []
    for what, path in read if log.overwrite else ():
        for place in places if path else ():
            if _lies_in(path, place):
                problems.found.append(f"--overwrite: would remove {place}, where {what} {path} is; use another --name")
    problems.raise_any()


def _check_below(flag: str, base: str, path: Path) -> None:
    if not _lies_in(path, base) or _lies_in(base, path):
        raise ValueError(f"{flag}: {path} leads to {_real(path)}, which does not lie below {base}; give another --name")


def _lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether one is the other or below it."""
    return f"{_real(path)}/".startswith(f"{_real(folder).rstrip('/')}/")


def _real(url: str | Path) -> str:
    """With links resolved, also those that go round, for which `Path.resolve` raises; a URL as it is."""
    return str(url).rstrip("/") if storage.is_remote(str(url)) else os.path.realpath(storage.local_path(str(url)))


def claim_run_folder(folder: RunFolder, params: LogParams, resuming: bool, world: World) -> IO[str] | None:
    """Make the folder and lock it; an existing run is only continued by --resume or removed by --overwrite. What a run left that ended
    before its first step stands in nobody's way.

    Returns:
        The lock on the first process, to be kept as long as the run; None on the others.

    Raises:
        ValueError: the run exists, is being written, or can't be; on every process.
    """
    lock, problem = None, None
    if world.is_first:
        try:
            lock = _claim(folder, params, resuming)
        except ValueError as error:
            problem = str(error)
        except OSError as error:
            problem = f"--logs-dir {params.logs}: {error}; give a folder that can be written"
    problem = from_first(problem)
    if problem:
        raise ValueError(problem)
    return lock


def refuse_existing(folder: RunFolder, params: LogParams, resuming: bool) -> None:
    """Raises ValueError for a folder that is neither free, nor to be continued, nor to be removed."""
    check_free(f"--name {folder.name}", str(folder.path), storage.contents(folder.path), params.overwrite, resuming)


def check_free(flag: str, url: str, files: Mapping[str, int], overwrite: bool, resuming: bool) -> None:
    """Raises ValueError where a run may not take a run folder, or the copy of one: it holds no run but something else; or, for a run that
    begins, a run that came to its first step, unless that is to be overwritten and nothing but a run lies there.

    Args:
        files: bytes by name of all that lies there.
    """
    foreign, remedy = not_written(files), "use another name"
    if resuming and _has_trained(files):
        return
    if files and not _is_run(url, files):
        raise ValueError(f"{flag}: {url} holds {shown(foreign or files)} and is not the folder of a run; {remedy}")
    if resuming:
        return
    if overwrite and foreign:
        raise ValueError(f"{flag}: {url} holds {shown(foreign)}, which no run wrote; nothing is removed. Move that away, or {remedy}")
    if not overwrite and _has_trained(files):
        remedy += " or --resume latest to continue it" if foreign else ", --resume latest to continue it, or --overwrite"
        raise ValueError(f"{flag}: {url} exists; {remedy}")


def not_written(files: Iterable[str]) -> list[str]:
    """The names that no run gives to what it writes."""
    return [name for name in files if not is_written(name)]


def is_written(name: str) -> bool:
    """Whether a name in a run folder is one that a run writes, or of what it left when it was killed."""
    return _WRITTEN.fullmatch(storage.finished_name(name)) is not None


def removed_by_overwrite(files: Iterable[str]) -> list[str]:
    """What a run wrote, in the order to remove it in: what proves that it is one goes last."""
    return sorted(filter(is_written, files), key=lambda name: name in _PROOFS)


def shown(names: Iterable[str]) -> str:
    """The first of some names, in words."""
    listed = sorted(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")


def _has_trained(files: Mapping[str, int]) -> bool:
    """Whether anything is there that a run writes at its first step or later."""
    return any(_TRAINED.fullmatch(name) or (size and name in _TRAINED_LINES) for name, size in files.items())


def _is_run(url: str, files: Mapping[str, int]) -> bool:
    """Whether a folder proves to be that of a run: by its options, its log or a signed lock; or by holding but empty files of one."""
    if not not_written(files) and not any(files.values()):
        return True
    return any(files.get(name) and proof.match(_begin(storage.join(url, name))) for name, proof in _PROOFS.items())


def _begin(url: str) -> str:
    with storage.open_read(url) as file:
        return bytes(file.read(1 << 16)).decode(errors="replace")


def _claim(folder: RunFolder, params: LogParams, resuming: bool) -> IO[str]:
    refuse_existing(folder, params, resuming)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = lock_run_folder(folder.path, patience=60.0 if resuming else 0.0)
    if not resuming:
        try:
            refuse_existing(folder, params, resuming)  # now that nobody else can begin there
            logs = () if params.overwrite else ("out.log",)  # what a run said that ended before its first step
            files = [name for name in removed_by_overwrite(storage.contents(folder.path)) if name not in (LOCK, *logs)]
            storage.remove_files(folder.path, files)
            folder.checkpoints.mkdir(exist_ok=True)
        except BaseException:
            lock.close()
            raise
    return lock


def start_logging(folder: RunFolder, params: LogParams, world: World) -> None:
    """Log lines to standard output and `out.log` on the first process; with --log-local to `out-<rank>.log` on the others."""
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if params.debug else logging.INFO)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if world.is_first else []
    if world.is_first or params.log_local:
        name = "out.log" if world.is_first else f"out-{world.rank}.log"
        handlers.append(_LogFile(folder.path / name, encoding="utf-8"))
    for handler in handlers or [logging.NullHandler()]:
        handler.setFormatter(_FORMAT)
        root.addHandler(handler)
    for noisy in ("fsspec", "matplotlib", "urllib3", "botocore", "aiobotocore", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _LogFile(logging.FileHandler):
    """Says once on stderr that lines are lost; a log that can't be written stops no training."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.setLevel(logging.CRITICAL + 1)
        try:
            with storage.tell_full_disk(self.baseFilename):
                raise error
        except OSError as full:
            print(f"the log gets no more lines: {full}", file=sys.stderr, flush=True)


@contextmanager
def keep_warnings(tell: bool) -> Iterator[list[logging.LogRecord]]:
    """Warnings that the body logs are kept, to be told when there is a log; where the body fails this process may `tell` them at once."""
    root, kept = logging.getLogger(), MemoryHandler(1 << 20, logging.CRITICAL + 1)
    kept.setLevel(logging.WARNING)
    before, root.handlers = root.handlers, [kept]
    try:
        yield kept.buffer
    except BaseException:
        for record in kept.buffer if tell else ():
            print(f"open_lm: warning: {record.getMessage()}", file=sys.stderr)
        raise
    finally:
        root.handlers = before


def write_params(folder: RunFolder, values: Mapping[str, Any]) -> None:
    """`params.txt`: sorted `name: value` lines, readable as YAML, None for what is absent."""
    with storage.atomic_write(folder.path / "params.txt", "w") as file:
        file.writelines(f"{name}: {value}\n" for name, value in sorted(values.items()))


def write_tokenizer(folder: RunFolder, tokenizer: Tokenizer) -> None:
    """The shards' tokenizer, and beside it the chat template of shards that have one."""
    for name, text in ((TOKENIZER, tokenizer.json_text), (TOKENIZER_CONFIG, tokenizer.config_json)):
        if text is not None:
            storage.write_bytes(str(folder.path / name), text.encode())


def write_config(folder: RunFolder, params: Params, model: Mapping[str, Any], **known: Any) -> None:
    """`config.yaml`: every option, with the model inside, as --config takes it back for the same run.

    Args:
        model: its configuration.
        known: options by name where more is known than was asked.
    """
    import yaml

    values = {**params.flat(), "name": folder.name, "model": dict(model), **known}
    with storage.atomic_write(folder.path / "config.yaml", "w") as file:
        yaml.safe_dump({name: value for name, value in values.items() if name not in ("overwrite", "dry_run")}, file)  # which act once


def copy_code(folder: RunFolder) -> None:
    """The package as it runs, into the run folder."""
    source = Path(__file__).resolve().parents[1]
    shutil.copytree(source, folder.path / "code" / source.name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
