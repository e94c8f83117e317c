"""scripts/generate.py from a shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(repo: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repo / "scripts/generate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_continues_prompts_greedily_and_with_samples(repo: Path, shared: Path) -> None:
    folder = shared / "data/golden/small_lm"
    case = json.loads((folder / "expected_generation.json").read_text())[0]
    model = ["--checkpoint", folder / "epoch_1.pt", "--model-config", folder / "model_config.json"]
    common = [*model, "--tokenizer", shared / "data/tokenizers/20B_tokenizer.json", "--max-new-tokens", 24, "--prompt", case["prompt"]]
    greedy = run(repo, *common)
    assert greedy.returncode == 0, greedy.stderr
    assert greedy.stdout == case["prompt"] + case["greedy_text"] + "\n"
    sampled = run(repo, *common, "--temperature", 0.8, "--num-samples", 2, "--seed", 5).stdout
    first, second = sampled.removeprefix("--- 1 of 2\n").split("--- 2 of 2\n")
    assert first.startswith(case["prompt"]) and second.startswith(case["prompt"]) and first != second


@pytest.mark.slow
def test_mistakes_are_lines_on_stderr(repo: Path) -> None:
    done = run(repo, "--prompt", "fine", "a\udcff", "--num-samples", "2")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--prompt, text 2: has half a surrogate pair" in done.stderr and "--checkpoint" in done.stderr
    done = run(repo, "--top-k", "many", "--temprature", "1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--top-k many" in done.stderr and "--temperature" in done.stderr
