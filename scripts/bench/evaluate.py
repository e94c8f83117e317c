#!/usr/bin/env python
"""Scores of the same tasks: LLM Foundry alone at 2048, our bridge to it, our native backend; lm-eval's own Hugging Face model and ours.

python scripts/bench/evaluate.py --shared FOLDER --json out.json

Every column is a process of its own environment that loads the model once; they take turns, task by task. Fails where scores differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from open_lm import storage  # noqa: E402
from open_lm.evaluation.foundry import environment as foundry_environment  # noqa: E402
from open_lm.params.fields import UserError, parse_topics  # noqa: E402
from scripts.bench import command, machine  # noqa: E402
from scripts.bench import evaluate_figures as figures  # noqa: E402
from scripts.bench.environment import environment, versions  # noqa: E402

PARTS = ("small", "large", "lm-eval-small", "lm-eval-large")
HFLM_BATCHES = (8, 16, 32)
REQUIREMENTS = ROOT / "scripts/bench/requirements-lm-eval.txt"


@dataclass(frozen=True)
class BenchOptions:
    """benchmark"""

    shared: str | None = None
    """Folder that holds data/eval, data/golden/small_lm and data/tokenizers."""
    json: str | None = None
    """File for the figures, with versions, processor, commit and command."""
    parts: str = ",".join(PARTS)
    """What is measured, with commas between; small is golden/small_lm (under lm-eval a random one of its shape), large a random one of
    open_lm_160m's shape."""
    repeats: int = 3
    """Rounds with the small model; columns take turns."""
    large_repeats: int = 1
    """Rounds with the large one."""
    rows: int = 100
    """Of each data set, for the small model."""
    large_rows: int = 100
    """Of each data set, for the large one."""
    foundry_questions: int = 8
    """Questions of each task that LLM Foundry alone scores with the small model; its time for all is reckoned from them."""
    large_foundry_questions: int = 1
    """The same with the large one."""
    threads: int = 2
    """Of every column."""
    work_dir: str | None = None
    """Folder for data, removed at the end. Default: the system's for temporary files."""


class Worker:
    """A process that answers one JSON line with another."""

    def __init__(self, python: Path, column: str, inputs: Mapping[str, Any], folder: Path, name: str):
        self.name, self.errors = name, folder / f"{name}-{column}.log"
        file = folder / f"{name}-{column}.json"
        file.write_text(json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in inputs.items()}))
        own = {"OMP_NUM_THREADS": str(inputs["threads"]), "RAYON_NUM_THREADS": str(inputs["threads"]), "TOKENIZERS_PARALLELISM": "true"}
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [python, ROOT / "scripts/bench/evaluate_worker.py", column, file],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env={**kept, **own}, cwd=folder,
            )  # fmt: skip
        self.about = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """What it finds."""
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}:\n{self.errors.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> int:
    """Exit status 0; 1 when a column failed or scores differ; 2 for bad options."""
    return command.run(_work)


def _work() -> command.Report:
    found, _ = parse_topics((BenchOptions,), prog="evaluate.py", description=__doc__)
    options = found[BenchOptions]
    _check(options)
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-", dir=options.work_dir) as folder:
        report = _measure(options, Path(folder))
    return command.Report(report, report["problems"], options.json)


def _check(options: BenchOptions) -> None:
    problems = [f"--parts {part}: choose from {', '.join(PARTS)}" for part in options.parts.split(",") if part not in PARTS]
    if options.shared is None or not (Path(options.shared) / "data/eval").is_dir():
        problems.append(f"--shared {options.shared}: give the folder that holds data/eval")
    problems += storage.unwritable("--json", options.json) + storage.unwritable("--work-dir", options.work_dir, folder=True)
    counts = ("repeats", "large_repeats", "rows", "large_rows", "foundry_questions", "large_foundry_questions", "threads")
    problems += [f"--{name.replace('_', '-')} {value}: give more than 0" for name in counts if (value := getattr(options, name)) < 1]
    if foundry_environment.find_python() is None:
        problems.append(foundry_environment.missing())
    if problems:
        raise UserError(problems)


def _measure(options: BenchOptions, folder: Path) -> dict[str, Any]:
    """All parts, printed as tables, and as they go into the JSON."""
    machine.warn_if_busy()
    report: dict[str, Any] = {"machine": machine.describe(ROOT, _versions(options.parts)), "options": asdict(options), "problems": []}
    for part in options.parts.split(","):
        runs, about = (_harness if part.startswith("lm-eval") else _backends)(options, folder, part)
        report[part] = {"runs": runs, "about": about, "ratios": figures.ratios(runs)}
        report["problems"] += [f"{part}: {problem}" for problem in figures.differences(runs)]
        print(f"\n{figures.table(_title(part), runs)}", flush=True)
    return report


def _title(part: str) -> str:
    shape = {"small": "small_lm", "large": "160m, random"}[part.removeprefix("lm-eval-")]
    return "small_lm's shape, random" if part == "lm-eval-small" else shape


def _inputs(options: BenchOptions, folder: Path, part: str) -> dict[str, Any]:
    """The model and the data of a part."""
    from open_lm.model.zoo import get_model_config
    from scripts.bench.evaluate_data import twin_config, write_tasks, write_twins

    data, large = Path(str(options.shared)).resolve() / "data", part.endswith("large")
    tokenizer, golden = data / "tokenizers/20B_tokenizer.json", data / "golden/small_lm"
    tasks = write_tasks(data / "eval", folder / f"{part}-tasks", options.large_rows if large else options.rows)
    common = {"tokenizer": tokenizer, "tasks": tasks, "threads": options.threads}
    if part == "small":
        return {**common, "weights": golden / "epoch_1.pt", "config": golden / "model_config.json"}
    twin = folder / ("twin-large" if large else "twin-small")
    if not twin.exists():
        values = get_model_config("open_lm_160m").to_dict() if large else json.loads((golden / "model_config.json").read_text())
        write_twins(twin_config(values), tokenizer, twin)
    return {**common, "weights": twin / "epoch_1.pt", "config": twin / "model.json", "stock": twin / "stock"}


def _rounds(options: BenchOptions, part: str) -> int:
    return options.large_repeats if part.endswith("large") else options.repeats


def _backends(options: BenchOptions, folder: Path, part: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """LLM Foundry alone, the bridge, the native backend."""
    from scripts.bench.evaluate_data import NAMES

    inputs = _inputs(options, folder, part)
    questions, size = (options.large_foundry_questions, 1) if part == "large" else (options.foundry_questions, 8)
    foundry = foundry_environment.find_python()
    assert foundry is not None
    pythons = {figures.FOUNDRY: (foundry, "foundry"), figures.BRIDGE: (foundry, "bridge")}
    pythons[figures.NATIVE] = (Path(sys.executable), "native")
    workers = {name: Worker(python, column, inputs, folder, part) for name, (python, column) in pythons.items()}
    more = {figures.FOUNDRY: {"batch_size": size, "questions": questions}}
    runs = _turns(workers, NAMES, _rounds(options, part), more)
    about = {name: worker.about for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    print(f"{part}: LLM Foundry alone scored {questions} questions of each task (whole batches of {size}) and is reckoned from them")
    return runs, about


def _turns(workers: Mapping[str, Worker], tasks: Sequence[str], rounds: int, more: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Runs by column and task. Each column warms up on the last task first."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {column: {task: [] for task in tasks} for column in workers}
    for column, worker in workers.items():
        worker.ask(name=tasks[-1], **more.get(column, {}))
    for number in range(rounds):
        for task in tasks:
            for column, worker in workers.items():
                runs[column][task].append(worker.ask(name=task, **more.get(column, {})))
                seconds = runs[column][task][-1]["seconds"]
                print(f"round {number + 1}: {task}: {column}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return runs


def _harness(options: BenchOptions, folder: Path, part: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """lm-eval's own Hugging Face model, with the best of some batch sizes, and ours."""
    from scripts.bench.evaluate_data import CHOICES

    worker = Worker(environment(REQUIREMENTS, on_ours=True), "lm-eval", _inputs(options, folder, part), folder, part)
    worker.ask(name=CHOICES[-1], batch_size=8)
    tried = {size: sum(worker.ask(name=task, batch_size=size)["seconds"] for task in CHOICES) for size in HFLM_BATCHES}
    best = min(tried, key=lambda size: tried[size])
    print(f"{part}: lm-eval's own, seconds by batch size: {', '.join(f'{n}: {s:.2f}' for n, s in tried.items())}", flush=True)
    runs = _turns({figures.HFLM: worker, figures.OURS: worker}, CHOICES, _rounds(options, part), {figures.HFLM: {"batch_size": best}})
    worker.close()
    return runs, {"batch_size": best, "seconds_by_batch_size": tried, **worker.about}


def _versions(parts: str) -> dict[str, str]:
    from importlib.metadata import version

    import open_lm

    own = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    foundry = foundry_environment.find_python()
    assert foundry is not None
    theirs = versions(foundry, ("llm-foundry", "mosaicml", "torch"))
    lm_eval = versions(environment(REQUIREMENTS, on_ours=True), ("lm-eval",)) if "lm-eval" in parts else {}
    peer = {name if name != "torch" else "torch of llm-foundry": found for name, found in theirs.items()}
    return {"open_lm": open_lm.__version__, "python": sys.version.split()[0], **own, **peer, **lm_eval}


if __name__ == "__main__":
    sys.exit(main())
