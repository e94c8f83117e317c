#!/usr/bin/env python
"""The loader's speed beside webdataset, a memory map and MosaicML Streaming; its share of training; its start and its memory.

python scripts/bench/loader.py --json out.json
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from open_lm import storage  # noqa: E402
from open_lm.params.fields import UserError, parse_topics  # noqa: E402
from scripts.bench import command, machine  # noqa: E402
from scripts.bench import loader_figures as figures  # noqa: E402
from scripts.bench.environment import environment, versions  # noqa: E402
from scripts.bench.loader_shards import VOCAB_SIZE, Data, make_data, make_many  # noqa: E402

PARTS = ("speed", "mds", "training", "start", "memory")
REQUIREMENTS = ROOT / "scripts/bench/requirements-streaming.txt"


@dataclass(frozen=True)
class BenchOptions:
    """benchmark"""

    json: str | None = None
    """File for the figures, with versions, processor, commit and command."""
    parts: str = ",".join(PARTS)
    """What is measured, with commas between."""
    repeats: int = 5
    """Runs of each reader; they take turns."""
    quick: bool = False
    """A small run that shows that everything works; its figures say little."""
    work_dir: str | None = None
    """Folder for data, removed at the end. Default: the system's for temporary files."""


@dataclass(frozen=True)
class Bench:
    """What all parts share, and how much they do."""

    options: BenchOptions
    parts: tuple[str, ...]
    folder: Path

    @property
    def text_rows(self) -> int:
        """Rows of the formats with one a member."""
        return 128 if self.options.quick else 1024

    @property
    def shards(self) -> int:
        """Many."""
        return 1000 if self.options.quick else 100_000

    @property
    def steps(self) -> tuple[int, int]:
        """Of training: open_lm_11m, one layer."""
        return (2, 20) if self.options.quick else (4, 300)


def main() -> int:
    """Exit status 0; 1 when a reader failed or gave other tokens; 2 for bad options."""
    return command.run(_work)


def _work() -> command.Report:
    found, _ = parse_topics((BenchOptions,), prog="loader.py", description=__doc__)
    options = found[BenchOptions]
    parts = tuple(part for part in options.parts.split(",") if part)
    problems = [f"--parts {part}: choose from {', '.join(PARTS)}" for part in parts if part not in PARTS]
    problems += [f"--repeats {options.repeats}: give more than 0"] if options.repeats < 1 else []
    problems += storage.unwritable("--json", options.json) + storage.unwritable("--work-dir", options.work_dir, folder=True)
    if problems:
        raise UserError(problems)
    with tempfile.TemporaryDirectory(prefix="bench-loader-", dir=options.work_dir) as folder:
        report = _measure(Bench(options, parts, Path(folder)))
    return command.Report(report, report["problems"], options.json)


def _measure(bench: Bench) -> dict[str, Any]:
    """All parts, printed as tables, and as they go into the JSON."""
    machine.warn_if_busy()
    report: dict[str, Any] = {"machine": machine.describe(ROOT, _versions(bench)), "problems": []}
    text = make_data(bench.folder / "text", bench.text_rows, ("txt", "json.gz"))
    many = make_data(bench.folder / "many", 8 * bench.text_rows, ("npy",))
    if {"speed", "mds"} & set(bench.parts):
        report |= {"rows": {"txt, json.gz": text.rows, "npy": many.rows}}
        report |= _speed(bench, text, many, report["problems"])
    if "training" in bench.parts:
        report["training"] = _training(bench, many)
        print("\n" + figures.wait_table(report["training"]))
    if {"start", "memory"} & set(bench.parts):
        (bench.folder / "links").mkdir()
        make_many(bench.folder / "links", bench.shards)
    if "start" in bench.parts:
        report["start"] = _starts(bench)
        print("\n" + figures.start_table(report["start"]))
    if "memory" in bench.parts:
        report["memory"] = _memory(bench)
        print("\n" + figures.memory_table(report["memory"]))
    return report


def _readers(bench: Bench, text: Data, many: Data) -> dict[str, tuple[str, Data, int]]:
    """By name: what loader_reader.py calls it, the data, and how many passes over them."""
    speed = {
        "ours txt": ("ours:txt:0", text, 6),
        "webdataset txt": ("webdataset:txt", text, 1),
        "ours json.gz": ("ours:json.gz:0", text, 6),
        "webdataset json.gz": ("webdataset:json.gz", text, 2),
        "ours npy": ("ours:npy:0", many, 4),
        "memory map": ("memmap:rows", many, 4),
        "memory map, gathered": ("memmap:gathered", many, 4),
        "ours npy, 1 worker": ("ours:npy:1", many, 4),
        "ours txt, 1 worker": ("ours:txt:1", text, 6),
    }
    streaming = {"MDS": ("mds", many, 2)}
    return {**(speed if "speed" in bench.parts else {}), **(streaming if "mds" in bench.parts else {})}


def _speed(bench: Bench, text: Data, many: Data, problems: list[str]) -> dict[str, Any]:
    """Readers in turns; the first run of each is checked."""
    python = environment(REQUIREMENTS) if "mds" in bench.parts else None
    if python is not None:
        _run(python, "loader_reader.py", "write-mds", many.folder, 0, 0)
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(bench.options.repeats):
        for name, (reader, data, passes) in _readers(bench, text, many).items():
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            own = python if reader == "mds" and python is not None else Path(sys.executable)
            found = _run(own, "loader_reader.py", reader, data.folder, passes, int(number == 0))
            if found.pop("checksum", data.checksum) != data.checksum:
                problems.append(f"{name}: gave other tokens than were written")
            runs.setdefault(name, []).append(found)
    report = {"runs": runs, "ratios": figures.ratios(runs)}
    print(f"\n{figures.speed_table(runs)}\n\n{figures.ratio_table(report['ratios'])}")
    return report


def _training(bench: Bench, many: Data) -> dict[str, Any]:
    """Waiting for the loader, by what the run itself writes."""
    toy = bench.folder / "toy.json"
    toy.write_text(json.dumps({"hidden_dim": 32, "n_layers": 1, "n_heads": 1, "seq_len": 64, "vocab_size": 512}))
    one = bench.folder / "one_layer.json"
    one.write_text(json.dumps({"hidden_dim": 96, "n_layers": 1, "n_heads": 4, "seq_len": 2048, "vocab_size": 50_432}))
    _small_shards(bench.folder / "small")
    long, short = bench.steps
    runs = {
        "open_lm_11m, 1 x 2,048 tokens": ("open_lm_11m", many.folder / "npy", 1, 2048, long),
        "1 layer of width 96, 1 x 2,048 tokens": (str(one), many.folder / "npy", 1, 2048, long),
        "1 layer of width 32, 16 x 64 tokens": (str(toy), bench.folder / "small", 16, 64, short),
    }
    found = {}
    for number, (name, (model, shards, batch, seq_len, steps)) in enumerate(runs.items()):
        for workers in (0, 1):
            print(f"training: {name}, --workers {workers}", file=sys.stderr, flush=True)
            command = ["-m", "open_lm.main", "--model", model, "--train-data", f"{shards}/*.tar", "--logs", bench.folder / "logs"]
            command += ["--name", f"run-{number}-{workers}", "--workers", workers, "--precision", "fp32", "--warmup", 2]
            command += ["--global-batch-size", batch, "--epochs", 1, "--train-num-samples", batch * seq_len * steps]
            command += ["--log-every-n-steps", max(1, steps // 8)]
            _call([sys.executable, *map(str, command)])
            lines = (bench.folder / f"logs/run-{number}-{workers}/metrics.jsonl").read_text().splitlines()
            found[f"{name}, --workers {workers}"] = figures.wait_share([json.loads(line) for line in lines])
    return found


def _small_shards(folder: Path) -> None:
    from open_lm.shards.manifest import write_manifest
    from open_lm.shards.tar import write_shard
    from scripts.bench.loader_shards import draw

    write_manifest(folder / "manifest.jsonl", [write_shard(folder / "shard-0000000.tar", "npy", draw(8192, 65, 512))])


def _starts(bench: Bench) -> list[dict[str, Any]]:
    """Time to the first batch, medians."""
    found = []
    for shards, pattern in ((1, f"{bench.folder}/links/shard-0000000.tar"), (bench.shards, f"{bench.folder}/links/*.tar")):
        for step in (10, 1_000_000):
            print(f"start: {shards} shards, step {step}", file=sys.stderr, flush=True)
            runs = [_run(Path(sys.executable), "loader_start.py", pattern, 64, 64, step, 0) for _ in range(3)]
            times = {name: statistics.median(run[name] for run in runs) for name in ("open_ms", "batch_ms")}
            found.append({"shards": shards, "step": step, **times})
    return found


def _memory(bench: Bench) -> list[dict[str, Any]]:
    """Of a worker."""
    links = f"{bench.folder}/links/*.tar"
    cases = [("txt", f"{bench.folder}/text/txt/*.tar", 4, 2048, 64), ("npy", f"{bench.folder}/many/npy/*.tar", 4, 2048, 64)]
    cases += [("npy", f"{bench.folder}/many/npy/*.tar", 4, 2048, 2048)]
    cases += [("npy", links, bench.shards, 64, streams) for streams in (64, 2048)]
    found = []
    for fmt, pattern, shards, seq_len, streams in cases:
        print(f"memory: {fmt}, {shards} shards, {streams} streams", file=sys.stderr, flush=True)
        one = _run(Path(sys.executable), "loader_start.py", pattern, seq_len, streams, 0, 1)
        found.append({"format": fmt, "shards": shards, "streams": streams, "worker_mb": one["worker_mb"]})
    return found


def _run(python: Path, script: str, *arguments: object) -> dict[str, Any]:
    """What one of the scripts beside this one prints."""
    out = _call([str(python), str(ROOT / "scripts/bench" / script), *map(str, arguments)])
    found: dict[str, Any] = json.loads(out.splitlines()[-1]) if out.strip() else {}
    return found


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def _versions(bench: Bench) -> Mapping[str, str]:
    from importlib.metadata import version
    from importlib.util import find_spec

    import open_lm

    own = {name: version(name) for name in ("torch", "numpy", "webdataset", "orjson")}
    own["isal"] = version("isal") if find_spec("isal") else "none"
    own["pysimdjson"] = version("pysimdjson") if find_spec("simdjson") else "none"
    peers = ("mosaicml-streaming", "torch", "numpy")
    peer = versions(environment(REQUIREMENTS), peers) if "mds" in bench.parts else {}
    of_peer = {name if name == peers[0] else f"{name} of {peers[0]}": found for name, found in peer.items()}
    return {"open_lm": open_lm.__version__, "python": sys.version.split()[0], **own, **of_peer, "vocabulary": str(VOCAB_SIZE)}


if __name__ == "__main__":
    sys.exit(main())
