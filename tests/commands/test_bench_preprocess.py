"""The preprocessor's benchmark: it runs from end to end on a tiny corpus, and its figures are what its runs say."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

WORDS = ["the", "of", "and", "language", "model", "tokens", "shard", "loader", "training", "sequence", "number", "every", "from", "corpus"]


@pytest.fixture(autouse=True)
def _importable(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repo))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of 300 documents."""
    folder, dice = tmp_path / "text", random.Random(1)
    folder.mkdir()
    documents = [" ".join(dice.choices(WORDS, k=100)).replace("from ", "from.\n") for _ in range(300)]
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-level BPE of 400 ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    found.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    found.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def bench(repo: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, repo / "scripts/bench/preprocess.py", *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_tiny_corpus_goes_through_all_parts_that_need_no_download(repo: Path, text: Path, tokenizer: Path, tmp_path: Path) -> None:
    flags = ["--megabytes", "0.3", "--memory-megabytes", "0.3", "--repeats", "2", "--peer-repeats", "1"]
    places = ["--text", text, "--tokenizer", tokenizer, "--work-dir", tmp_path / "work", "--json", tmp_path / "out.json"]
    done = bench(repo, "--parts", "ours,hf,unavoidable,memory", *flags, *places)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert {name: len(runs) for name, runs in report["runs"].items()} == {"ours txt": 2, "ours npy": 2, "hf txt": 1, "hf npy": 1}
    assert len(set(report["tokens"].values())) == 1, "all made the same tokens"
    assert report["checks"]["problems"] == []
    assert 300_000 <= report["corpus"]["text_bytes"] < 800_000
    assert report["unavoidable"]["txt"]["whole / unavoidable"] > 1
    assert 50 < report["memory"]["npy"]["peak_mb"] < 2000
    assert len(report["memory"]["txt"]["tokenizing_mb_per_second"]) == 10
    assert report["machine"]["command"].startswith("python scripts/bench/preprocess.py --parts")
    assert {"hf txt", "hf npy"} == set(report["ratios"])
    assert "times the sum of its unavoidable parts" in done.stdout
    [corpus] = (tmp_path / "work").iterdir()
    assert corpus.name.startswith("corpus-0.3MB-"), "output is gone, the corpus is kept"


@pytest.mark.slow
def test_bad_options_are_named_with_the_remedy(repo: Path, tokenizer: Path, tmp_path: Path) -> None:
    done = bench(repo, "--parts", "ours,theirs", "--tokenizer", tokenizer, "--repeats", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "--parts theirs: choose from ours, hf, datatrove, unavoidable, memory",
        "--repeats 0: give more than 0",
    ]


@pytest.mark.slow
def test_a_corpus_is_the_same_for_the_same_parameters_and_repeats_no_document(text: Path, tmp_path: Path) -> None:
    from scripts.bench.varied_corpus import make_corpus

    first, again, other = (make_corpus(text, 0.3, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    contents = [[Path(path).read_bytes() for path in corpus.paths] for corpus in (first, again, other)]
    assert contents[0] == contents[1] != contents[2]
    lines = [
        line for path in first.paths for line in zstandard.ZstdDecompressor().stream_reader(Path(path).read_bytes()).read().splitlines()
    ]
    texts = [json.loads(line)["text"] for line in lines]
    assert len(set(texts)) == len(texts) == first.documents
    assert sum(len(one.encode()) for one in texts) == first.text_bytes >= 300_000
    assert max(map(len, texts)) > 4 * sorted(map(len, texts))[len(texts) // 2], "lengths have spread"


def run(work: float, **more: float) -> dict[str, float]:
    return {"work_seconds": work, "wall_seconds": work + 2, "startup_seconds": 1, **more}


def test_ratios_are_of_medians() -> None:
    from scripts.bench.preprocess_figures import ratios

    runs = {"ours txt": [run(1), run(2), run(9)], "hf txt": [run(30)], "datatrove": [run(20), run(10)]}
    found = ratios(runs)
    assert found["hf txt"] == {"work_seconds": 15, "wall_seconds": 8, "target": 15}
    assert found["datatrove txt"]["work_seconds"] == 7.5
    assert set(found) == {"hf txt", "datatrove txt"}


def test_the_parts_and_the_rest_add_up_to_the_whole() -> None:
    from scripts.bench.preprocess_figures import budget

    parts = [{"decompress": 0.5, "parse": 0.5, "tokenize": 3.0, "write txt": 1.0, "write npy": 0.1}]
    ours = [run(5, writing_seconds=1, worker_seconds=7, checking_seconds=0.25)]
    figures = budget("txt", 2, ours, parts)
    assert figures["unavoidable"] == 5
    assert figures["whole"] == 10
    assert figures["whole / unavoidable"] == 2
    rest = [value for name, value in figures.items() if name not in ("decompress", "parse", "tokenize", "write txt", "whole / unavoidable")]
    assert sum(rest) == 2 * figures["whole"]


def test_tenths_of_a_stage_share_its_text() -> None:
    from scripts.bench.preprocess_figures import tenths
    from scripts.bench.process_watch import Sample

    samples = [Sample(float(t), (), read, 0) for t, read in ((0, 0), (5, 300), (10, 400))]
    assert tenths(samples, 0, 10, written=False, text_bytes=40_000_000) == [6.0] * 5 + [2.0] * 5


@pytest.mark.slow
def test_the_memory_of_children_counts_and_what_they_share_counts_once() -> None:
    from scripts.bench.process_watch import ProcessWatch

    child = "import os, time; data = bytearray(os.urandom(1)) * (100 << 20); os.fork(); time.sleep(2)"
    process: Any = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    with ProcessWatch(process.pid) as watch:
        process.wait()
    peak = watch.peak()
    assert len(peak.memory) == 2
    assert 100e6 < sum(peak.memory) < 150e6
