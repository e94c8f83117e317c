"""The folder of a run, `<logs>/<name>/`: its name, `params.txt`, `config.yaml`, `out.log`, `checkpoints/`."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from open_lm import storage
from open_lm.model.zoo import model_name
from open_lm.params import LogParams, Params
from open_lm.tokenizer import TOKENIZER, TOKENIZER_CONFIG, Tokenizer
from open_lm.train.launcher import lock_run_folder
from open_lm.train.parallel import World, from_first

_FORMAT = logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

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
    return RunFolder(storage.local_path(params.log.logs) / from_first(params.log.name or made))


def claim_run_folder(folder: RunFolder, params: LogParams, resuming: bool, world: World) -> IO[str] | None:
    """Make the folder and lock it; an existing run is only continued by --resume or removed by --overwrite.

    Returns:
        The lock on the first process, to be kept as long as the run; None on the others.

    Raises:
        ValueError: the run exists or is being written, on every process.
    """
    lock, problem = None, None
    if world.is_first:
        try:
            lock = _claim(folder, params, resuming)
        except ValueError as error:
            problem = str(error)
    problem = from_first(problem)
    if problem:
        raise ValueError(problem)
    return lock


def refuse_existing(folder: RunFolder, params: LogParams, resuming: bool) -> None:
    """Raises ValueError for a run that exists and is neither to be continued nor to be removed."""
    if not resuming and not params.overwrite and folder.path.exists() and any(folder.path.iterdir()):
        raise ValueError(f"--name {folder.name}: {folder.path} exists; use another name, --resume latest to continue it, or --overwrite")


def _claim(folder: RunFolder, params: LogParams, resuming: bool) -> IO[str]:
    refuse_existing(folder, params, resuming)
    if not resuming and folder.path.exists() and any(folder.path.iterdir()):
        lock_run_folder(folder.path, patience=0).close()
        shutil.rmtree(folder.path)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    return lock_run_folder(folder.path)


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
def keep_warnings() -> Iterator[list[str]]:
    """Warnings that the body logs are kept, to be told when there is a log; where the body fails they are told at once."""
    root, kept = logging.getLogger(), _Keep(logging.WARNING)
    before, root.handlers = root.handlers, [kept]
    try:
        yield kept.lines
    except BaseException:
        for line in kept.lines:
            print(f"open_lm: warning: {line}", file=sys.stderr)
        raise
    finally:
        root.handlers = before


class _Keep(logging.Handler):
    def __init__(self, level: int):
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


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
