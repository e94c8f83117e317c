#!/usr/bin/env python
"""The preprocessor's speed and memory, beside the same pipeline with `tokenizers`, datatrove's, and the sum of its unavoidable parts.

python scripts/bench/preprocess.py --json out.json --text FOLDER_OF_JSONL_ZST --tokenizer TOKENIZER.JSON
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from open_lm import storage  # noqa: E402
from open_lm.params.fields import UserError, parse_topics  # noqa: E402
from open_lm.tokenizer import load_tokenizer  # noqa: E402
from open_lm.tokens.memory import default_limit  # noqa: E402
from scripts.bench import command, datatrove_peer, machine, our_run  # noqa: E402
from scripts.bench import preprocess_figures as figures  # noqa: E402
from scripts.bench.environment import cache_folder  # noqa: E402
from scripts.bench.varied_corpus import Corpus, make_corpus, to_json  # noqa: E402

PARTS = ("ours", "hf", "datatrove", "unavoidable", "memory")


@dataclass(frozen=True)
class BenchOptions:
    """benchmark"""

    json: str | None = None
    """File for the figures, with versions, processor, commit and command."""
    megabytes: float = 300
    """Text of the corpus for speed, 10^6 bytes."""
    memory_megabytes: float = 2000
    """Text of the corpus for memory and steadiness."""
    repeats: int = 5
    """Runs of each of ours; the runs of all take turns."""
    peer_repeats: int | None = None
    """Runs of each slow peer, hf and datatrove. Default: as many."""
    parts: str = ",".join(PARTS)
    """What is measured, with commas between."""
    text: str = "../shared/data/text"
    """Folder of .jsonl.zst, with a text in each line, that the corpora are made from."""
    tokenizer: str = "../shared/data/tokenizers/20B_tokenizer.json"
    """A tokenizer.json."""
    work_dir: str | None = None
    """Folder for corpora, which are kept, and for output, which is removed. Default: in the user's cache."""


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    options: BenchOptions
    parts: tuple[str, ...]
    tokenizer_file: str
    folder: Path
    """For output, empty."""
    workers: int

    def job(self, corpus: Corpus, fmt: str, engine: str) -> our_run.Job:
        return our_run.Job(tuple(corpus.paths), self.tokenizer_file, fmt, engine, self.workers)


@dataclass
class Correct:
    """What was checked on the way: problems make all figures void."""

    shards: dict[str, str]
    """By format: hash of the manifests."""
    compared_documents: int
    problems: list[str]

    def same_shards(self, fmt: str, finished: our_run.Finished, name: str) -> None:
        if self.shards.setdefault(fmt, finished.shards) != finished.shards:
            self.problems.append(f"{name}: its {fmt} shards are not those of the first run")

    def to_json(self) -> dict[str, Any]:
        return {"datatrove_documents_compared": self.compared_documents, "problems": self.problems}


Competitor = Callable[[], Mapping[str, float]]


def main() -> int:
    """Exit status 0; 1 when a run failed or made other tokens; 2 for bad options."""
    return command.run(_work)


def _work() -> command.Report:
    found, _ = parse_topics((BenchOptions,), prog="preprocess.py", description=__doc__)
    with _bench(found[BenchOptions]) as bench:
        report = _measure(bench)
    return command.Report(report, report["checks"]["problems"], bench.options.json)


@contextmanager
def _bench(options: BenchOptions) -> Iterator[Bench]:
    """The options as they are meant, and a folder for output. Raises UserError for those that can't be."""
    parts = tuple(part for part in options.parts.split(",") if part)
    problems = [f"--parts {part}: choose from {', '.join(PARTS)}" for part in parts if part not in PARTS]
    for flag, value in (("--repeats", options.repeats), ("--peer-repeats", options.peer_repeats or 1), ("--megabytes", options.megabytes)):
        problems += [f"{flag} {value}: give more than 0"] if value <= 0 else []
    if not Path(options.tokenizer).is_file():
        problems.append(f"--tokenizer {options.tokenizer}: no such file; give a tokenizer.json")
    problems += storage.unwritable("--json", options.json) + storage.unwritable("--work-dir", options.work_dir, folder=True)
    if problems:
        raise UserError(problems)
    work = Path(options.work_dir or cache_folder() / "bench").resolve()
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="output-", dir=work) as folder:
        yield Bench(options, parts, str(Path(options.tokenizer).resolve()), Path(folder), machine.cores())


def _corpus(bench: Bench, megabytes: float) -> Corpus:
    print(f"corpus of {megabytes:g} MB", file=sys.stderr, flush=True)
    return make_corpus(Path(bench.options.text), megabytes, bench.folder.parent)


def _measure(bench: Bench) -> dict[str, Any]:
    """All parts, printed as tables, and as they go into the JSON."""
    machine.warn_if_busy()
    report: dict[str, Any] = {"machine": machine.describe(ROOT, _versions(bench.parts)), "workers": bench.workers}
    correct = Correct({}, 0, [])
    if set(bench.parts) - {"memory"}:
        corpus = _corpus(bench, bench.options.megabytes)
        report |= {"corpus": to_json(corpus), **_speed(bench, corpus, correct)}
    if "memory" in bench.parts:
        corpus = _corpus(bench, bench.options.memory_megabytes)
        report["memory"] = {fmt: _memory(bench, corpus, fmt) for fmt in figures.FORMATS}
        for fmt, found in report["memory"].items():
            print("\n" + figures.memory_table(fmt, found))
    return {**report, "checks": correct.to_json()}


def _speed(bench: Bench, corpus: Corpus, correct: Correct) -> dict[str, Any]:
    """The parts that take turns."""
    counts: dict[str, int] = {}
    runs = _in_turns(bench, _competitors(bench, corpus, correct, counts))
    parts = runs.pop("unavoidable", [])
    found: dict[str, Any] = {"tokens": counts, "runs": runs, "ratios": figures.ratios(runs)}
    if len(set(counts.values())) > 1:
        correct.problems.append(f"tokens differ: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    if runs:
        tokens = next(iter(counts.values()))
        print(f"\n{corpus.text_bytes / 1e6:.0f} MB of text, {tokens:,} tokens, {corpus.documents:,} documents, {bench.workers} cores")
        print(figures.speed_table(runs, corpus.text_bytes, tokens))
    if found["ratios"]:
        print("\n" + figures.ratio_table(found["ratios"]))
    if parts:
        found["unavoidable"] = {"runs": parts}
    for fmt in figures.FORMATS:
        if parts and f"ours {fmt}" in runs:
            found["unavoidable"][fmt] = figures.budget(fmt, bench.workers, runs[f"ours {fmt}"], parts)
            print("\n" + figures.budget_table(fmt, found["unavoidable"][fmt], corpus.text_bytes))
    return found


def _competitors(bench: Bench, corpus: Corpus, correct: Correct, counts: dict[str, int]) -> dict[str, Competitor]:
    """Who takes turns, by name; each makes one run and returns its seconds."""

    def ours(name: str, fmt: str, engine: str) -> Mapping[str, float]:
        finished = our_run.run(ROOT, bench.job(corpus, fmt, engine), bench.folder / "ours")
        counts[name] = finished.stats["tokens"]
        correct.same_shards(fmt, finished, name)
        return finished.figures()

    def datatrove() -> Mapping[str, float]:
        return _run_datatrove(bench, corpus, correct, counts)

    def unavoidable() -> Mapping[str, float]:
        found = _run_unavoidable(bench, corpus)
        counts["unavoidable"] = found["tokens"] + found["documents"]  # an end of text for each
        return found["seconds"]

    found: dict[str, Competitor] = {}
    for engine, part in (("auto", "ours"), ("hf", "hf")):
        if part in bench.parts:
            for fmt in figures.FORMATS:
                name = f"{part} {fmt}"
                found[name] = lambda name=name, fmt=fmt, engine=engine: ours(name, fmt, engine)  # type: ignore[misc]
    others: dict[str, Competitor] = {"datatrove": datatrove, "unavoidable": unavoidable}
    return found | {part: run for part, run in others.items() if part in bench.parts}


def _in_turns(bench: Bench, competitors: Mapping[str, Competitor]) -> dict[str, list[Mapping[str, float]]]:
    """The runs of all, one of each in every round."""
    runs: dict[str, list[Mapping[str, float]]] = {name: [] for name in competitors}
    peer_repeats = bench.options.peer_repeats or bench.options.repeats
    for number in range(max(bench.options.repeats, peer_repeats)):
        for name, run in competitors.items():
            if number < (peer_repeats if name.startswith(("hf", "datatrove")) else bench.options.repeats):
                print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
                os.sync()  # what the last one wrote
                runs[name].append(run())
    return runs


def _run_datatrove(bench: Bench, corpus: Corpus, correct: Correct, counts: dict[str, int]) -> Mapping[str, float]:
    python, tokenizer = datatrove_peer.environment(), load_tokenizer(bench.tokenizer_file)
    output = bench.folder / "datatrove"
    finished = datatrove_peer.run(python, corpus.folder, tokenizer, bench.tokenizer_file, bench.workers, output)
    if "datatrove" not in counts:
        correct.compared_documents, different = datatrove_peer.different(tokenizer, corpus.paths, output)
        if different:
            correct.problems.append(f"datatrove: has other ids for {different} of {correct.compared_documents} documents")
    counts["datatrove"] = finished.tokens
    shutil.rmtree(output)
    return finished.figures()


def _run_unavoidable(bench: Bench, corpus: Corpus) -> dict[str, Any]:
    script = ROOT / "scripts/bench/unavoidable_parts.py"
    command: Sequence[str | Path] = [sys.executable, script, bench.tokenizer_file, bench.folder, *corpus.paths]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"unavoidable_parts.py ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _memory(bench: Bench, corpus: Corpus, fmt: str) -> dict[str, Any]:
    """One long run of ours, watched."""
    print(f"memory: {fmt}", file=sys.stderr, flush=True)
    os.sync()
    finished = our_run.run(ROOT, bench.job(corpus, fmt, "auto"), bench.folder / "ours", watched=True)
    assert finished.watch is not None
    peak, samples = finished.watch.peak(), finished.watch.samples
    middle, end = (finished.ended[stage] for stage in our_run.STAGES)
    return {
        "text_mb": corpus.text_bytes / 1e6,
        "peak_mb": round(sum(peak.memory) / 1e6, 1),
        "peak_mb_of_each_process": [round(size / 1e6, 1) for size in peak.memory],
        "limit_mb": default_limit(bench.workers) / 1e6,
        "mb_per_second": round(corpus.text_bytes / finished.work / 1e6, 1),
        "tokenizing_mb_per_second": figures.tenths(samples, end - finished.work, middle, False, corpus.text_bytes),
        "writing_mb_per_second": figures.tenths(samples, middle, end, True, corpus.text_bytes),
        **finished.figures(),
    }


def _versions(parts: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    import open_lm

    own = {name: version(name) for name in ("tokenizers", "gigatoken", "numpy", "orjson", "zstandard")}
    peer = datatrove_peer.versions(datatrove_peer.environment()) if "datatrove" in parts else {}
    return {"open_lm": open_lm.__version__, "python": sys.version.split()[0], **own, **peer}


if __name__ == "__main__":
    sys.exit(main())
