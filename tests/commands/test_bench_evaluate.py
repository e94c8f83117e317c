"""The benchmark of scores: what it reads, what it says of its runs, and that a score which differs is an error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _importable(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repo))


@pytest.mark.slow
def test_bad_options_are_named_with_the_remedy(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, repo / "scripts/bench/evaluate.py", "--parts", "small,huge", "--rows", "0", "--shared", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[:3] == [
        "--parts huge: choose from small, large, lm-eval-small, lm-eval-large",
        f"--shared {tmp_path}: give the folder that holds data/eval",
        "--rows 0: give more than 0",
    ]


def test_task_files_are_read_by_the_native_backend_and_name_what_is_measured(tmp_path: Path) -> None:
    from open_lm.evaluation.tasks import read_task_file
    from scripts.bench.evaluate_data import CHOICES, NAMES, TASKS, task_file, write_tasks

    (tmp_path / "eval").mkdir()
    for task in TASKS:
        (tmp_path / f"eval/{task['label']}.jsonl").write_text('{"a": 1}\n' * 9)
    folder = write_tasks(tmp_path / "eval", tmp_path / "out", 4)
    assert [read_task_file(str(task_file(folder, name))).tasks[0].name for name in NAMES] == list(NAMES)
    assert (folder / "boolq.jsonl").read_text() == '{"a": 1}\n' * 4
    assert sorted(path.stem for path in (folder / "lm-eval").iterdir()) == sorted(CHOICES)


@pytest.mark.slow
def test_the_stock_twin_has_our_logits(shared: Path, tmp_path: Path) -> None:
    from scripts.bench.evaluate_data import twin_config, write_twins

    config = twin_config({"hidden_dim": 16, "n_layers": 2, "n_heads": 2, "seq_len": 64, "vocab_size": 50_432, "qk_norm": True})
    assert not config.qk_norm and config.model_norm == "rms_norm"
    weights, _, stock = write_twins(config, shared / "data/tokenizers/20B_tokenizer.json", tmp_path / "twin")  # compares logits itself
    assert weights.is_file() and (stock / "tokenizer.json").is_file()
    assert json.loads((stock / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def runs(native: float = 0.5, right: tuple[int, ...] = (1, 0), acc: float = 0.25) -> dict[str, Any]:
    from scripts.bench import evaluate_figures as figures

    return {
        figures.FOUNDRY: {"a": [{"seconds": 90.0, "right": list(right)}, {"seconds": 110.0, "right": [1, 0]}]},
        figures.BRIDGE: {"a": [{"seconds": 10.0, "scores": {"a": 0.5}}] * 2},
        figures.NATIVE: {"a": [{"seconds": 8.0, "scores": {"a": native}, "right": [1, 0, 0, 1]}] * 2},
        figures.HFLM: {"b": [{"seconds": 3.0, "scores": {"b:acc": 0.25}}]},
        figures.OURS: {"b": [{"seconds": 1.0, "scores": {"b:acc": acc}}]},
    }


def test_ratios_are_of_medians_and_a_missed_target_is_marked() -> None:
    from scripts.bench import evaluate_figures as figures

    found = figures.ratios(runs())
    assert [one["times"] for one in found.values()] == [10.0, 12.5, 3.0]
    text = figures.table("tiny", runs())
    assert "| tiny: native / LLM Foundry at 2048 | 12.50, missed | 20 |" in text
    assert "| a | 0.50 | 100.00 | 10.00 | 8.00 |" in text and "| tiny: ours in lm-eval / lm-eval's own | 3.00 | 1.5 |" in text


def test_a_score_that_differs_is_a_problem() -> None:
    from scripts.bench import evaluate_figures as figures

    assert figures.differences(runs()) == []
    assert len(figures.differences(runs(native=0.4))) == 2
    assert len(figures.differences(runs(acc=0.3))) == 1
    [problem] = figures.differences(runs(right=(1, 1)))
    assert problem == "a: LLM Foundry alone finds [1, 1] right, native [1, 0]"
