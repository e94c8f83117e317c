"""What run states cost: how long a save holds training up, beside one copy of the state in memory; seconds and bytes of saving and loading.

checkpoint.py [--model open_lm_160m] [--repeats 5] [--folder FOLDER] [--json FILE] prints a table. On a GPU where there is one.

- copy: every tensor of the state copied into host memory that is used again (pinned beside a GPU).
- sync: a save that is waited for, to the last fsync. async: until training may go on; `whole` is the time until it is on the disk.
- load: check of all files (SHA-256), then all tensors read into model and optimizer.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from open_lm import storage  # noqa: E402
from open_lm.checkpoint.part_reader import load_tensors  # noqa: E402
from open_lm.checkpoint.run_state import RunState, read_run_state, state_tensors  # noqa: E402
from open_lm.checkpoint.state_writer import StateWriter  # noqa: E402
from open_lm.model.transformer import Transformer  # noqa: E402
from open_lm.model.zoo import get_model_config  # noqa: E402
from open_lm.params import OptimizerParams, UserError  # noqa: E402
from open_lm.params.fields import parse_topics  # noqa: E402
from open_lm.train.optimizer import make_optimizer  # noqa: E402
from scripts.bench.machine import describe  # noqa: E402


@dataclass(frozen=True)
class Options:
    """benchmark"""

    model: str = "open_lm_160m"
    """A named size or a model.json."""
    repeats: int = 5
    """Measurements of each kind; medians are printed."""
    folder: str | None = None
    """Where run states are written, on the disk to be measured. Default: the temporary folder."""
    json: str | None = None
    """File for all figures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    try:
        topics, _ = parse_topics((Options,), argv, prog="checkpoint.py", description="Measures saving and loading run states.")
        given: Any = topics[Options]
        if problems := storage.unwritable("--json", given.json) + storage.unwritable("--folder", given.folder, folder=True):
            raise UserError(problems)
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 2
    options: Any = topics[Options]
    folder = Path(tempfile.mkdtemp(prefix="run-states-", dir=options.folder))
    try:
        figures = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    print("\n".join(table(figures)))
    if options.json:
        about = describe(Path(__file__).resolve().parents[2], {"torch": torch.__version__, "python": sys.version.split()[0]})
        Path(options.json).write_text(json.dumps({**about, **figures}, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """All figures: seconds of every repeat by kind, bytes, parameters, device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tensors = _state(options.model, device)
    kinds = {**_saves(tensors, options.repeats, device, folder), **_loads(tensors, options.repeats, device, folder)}
    return {
        "model": options.model,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "state_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "written_bytes": sum(path.stat().st_size for path in (folder / "step_0").iterdir()),
        "seconds": kinds,
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Markdown: seconds, and as a multiple of one copy of the state."""
    medians = {kind: statistics.median(values) for kind, values in figures["seconds"].items()}
    lines = [
        f"{figures['model']} on {figures['device']}: state {figures['state_bytes']:,} bytes, written {figures['written_bytes']:,}",
        "",
        "| | seconds | copies | every run |",
        "| --- | ---: | ---: | --- |",
    ]
    for kind, seconds in medians.items():
        every = " ".join(f"{value:.3f}" for value in figures["seconds"][kind])
        lines.append(f"| {kind} | {seconds:.3f} | {seconds / medians['copy']:.2f} | {every} |")
    return lines


def _state(model_name: str, device: torch.device) -> dict[str, Tensor]:
    """Model and AdamW moments with random values: zeros would be cheaper to write."""
    model = Transformer(get_model_config(model_name)).to(device)
    model.init_weights()
    tensors = state_tensors(model, make_optimizer(model, OptimizerParams()))
    for tensor in tensors.values():
        tensor.uniform_()
    return tensors


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """From an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _copier(tensors: dict[str, Tensor], device: torch.device) -> Callable[[], None]:
    """One copy of the state into host memory that is used again."""
    hosts = [torch.zeros(value.shape, dtype=value.dtype, pin_memory=device.type == "cuda") for value in tensors.values()]

    def copy() -> None:
        for host, value in zip(hosts, tensors.values(), strict=True):
            host.copy_(value, non_blocking=True)

    copy()
    return copy


def _saves(tensors: dict[str, Tensor], repeats: int, device: torch.device, folder: Path) -> dict[str, list[float]]:
    """Copies and saves, in turns. Each save replaces the one before, so that the disk holds two at most."""
    copy = _copier(tensors, device)
    state = RunState(0, 0, 0, 1, {}, {}, {})
    writers = {"sync": StateWriter(str(folder)), "async": StateWriter(str(folder), asynchronous=True)}
    seconds: dict[str, list[float]] = {"copy": [], "sync": [], "async, the first": [], "async": [], "async, whole": []}
    for kind in ("async, the first", *("copy", "sync", "async") * repeats):
        if kind == "copy":
            seconds[kind].append(_seconds(copy, device))
            continue
        writer = writers[kind.split(",")[0]]
        begin = time.perf_counter()
        seconds[kind].append(_seconds(lambda writer=writer: writer.save(tensors, state), device))  # type: ignore[misc]
        writer.wait()
        if kind == "async":
            seconds["async, whole"].append(time.perf_counter() - begin)
    writers["async"].close()
    return seconds


def _loads(tensors: dict[str, Tensor], repeats: int, device: torch.device, folder: Path) -> dict[str, list[float]]:
    url = str(folder / "step_0")
    return {
        "check": [_seconds(lambda: read_run_state(url), device) for _ in range(repeats)],
        "load": [_seconds(lambda: load_tensors(url, tensors), device) for _ in range(repeats)],
    }


if __name__ == "__main__":
    sys.exit(main())
