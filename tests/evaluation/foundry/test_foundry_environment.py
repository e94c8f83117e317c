"""Where LLM Foundry's environment is looked for, and how the command goes on there."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from open_lm.evaluation import command
from open_lm.evaluation.foundry import environment


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, and no LLM Foundry here."""
    monkeypatch.setenv("OPENLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "inside", lambda: False)
    monkeypatch.setattr(environment.os, "execve", in_a_child)
    return tmp_path / "cache"


def in_a_child(path: Path, arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """As `os.execve`, which would end the tests with the process."""
    sys.exit(subprocess.run([path, *arguments[1:]], env=environment).returncode)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a command that could run."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "a", "choices": ["b", "c"], "gold": 0}))
    (tmp_path / "tasks.yaml").write_text("icl_tasks: [{label: x, dataset_uri: rows.jsonl, num_fewshot: 0, icl_task_type: multiple_choice}]")
    (tmp_path / "one.pt").touch()
    monkeypatch.chdir(tmp_path)
    return ["--eval-yaml", "tasks.yaml", "--checkpoint", "one.pt", "--backend", "llm-foundry"]


def fake(cache: Path, repo: Path, script: str) -> Path:
    """An environment whose Python is this shell script."""
    name = hashlib.sha256((repo / "requirements-foundry.txt").read_bytes()).hexdigest()[:16]
    python = cache / f"foundry-{name}/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (cache / f"foundry-{name}/.openlm-stamp").write_text(f"{name}\n")
    return python


def test_an_environment_counts_once_it_is_whole_and_of_these_requirements(outside: Path, repo: Path) -> None:
    assert environment.find_python() is None
    python = fake(outside, repo, "exit 0")
    assert environment.find_python() == python
    stamp = python.parents[1] / ".openlm-stamp"
    stamp.write_text("other")
    assert environment.find_python() is None
    stamp.unlink()
    assert environment.find_python() is None


def test_without_it_the_command_that_builds_it_is_told_with_its_size(outside: Path, task: list[str]) -> None:
    with pytest.raises(ValueError, match=r"scripts/setup\.sh foundry.*--build-env \(about 7 GB.*--backend native"):
        command.run_eval(task)


def test_the_same_arguments_go_there_and_its_status_comes_back(outside: Path, repo: Path, task: list[str]) -> None:
    fake(outside, repo, 'printf "%s\\n" "$@" > arguments; exit 5')
    odd = [*task, "--out", "a b;$(touch no).json"]
    with pytest.raises(SystemExit, match="5"):
        command.run_eval(odd)
    assert Path("arguments").read_text().splitlines() == [str(repo / "eval/eval_openlm_ckpt.py"), *odd]
    assert not Path("no").exists()


@pytest.mark.parametrize(("seen", "index", "only"), [(None, 1, "1"), ("4,GPU-ab", 1, "GPU-ab")])
def test_a_numbered_gpu_is_the_only_one_there(
    outside: Path, repo: Path, task: list[str], monkeypatch: pytest.MonkeyPatch, seen: str | None, index: int, only: str
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    fake(outside, repo, 'printf "%s\\n" "$CUDA_VISIBLE_DEVICES" "$@" > arguments')
    with pytest.raises(SystemExit, match="0"):
        command.run_eval([*task, "--device", f"cuda:{index}"])
    lines = Path("arguments").read_text().splitlines()
    assert lines[0] == only and lines[-2:] == ["--device", "cuda"]  # the last one counts
    if seen:
        with pytest.raises(ValueError, match="--device cuda:2: CUDA_VISIBLE_DEVICES has 2 GPUs"):
            command.run_eval([*task, "--device", "cuda:2"])


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if LLM Foundry were installed here, and there were GPUs."""
    monkeypatch.setattr(environment, "inside", lambda: True)
    monkeypatch.setattr(command, "choose_device", lambda named: named or "cuda")
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:1"], "--device cuda:1: .*takes cuda:0 .*CUDA_VISIBLE_DEVICES=1 and give --device cuda"),
        (["--device", "cpu", "--precision", "amp_bfloat16"], "--precision amp_bfloat16: .* --precision fp32"),
        (["--device", "cpu", "--eval-yaml", "half.yaml"], "--eval-yaml half.yaml: precision amp_bf16: .*--precision fp32"),
    ],
)
def test_what_composer_cannot_do_is_refused_before_a_model_is_loaded(
    inside: None, task: list[str], options: list[str], message: str
) -> None:
    Path("half.yaml").write_text("precision: amp_bf16\n" + Path("tasks.yaml").read_text())
    with pytest.raises(ValueError, match=message):  # one.pt is empty
        command.run_eval([*task, *options])


def test_auto_is_llm_foundry_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "inside", lambda: True)
    assert command.choose_backend("auto") == "llm-foundry" and command.choose_backend("native") == "native"
    monkeypatch.setattr(environment, "inside", lambda: False)
    assert command.choose_backend("auto") == "native" and command.choose_backend("llm-foundry") == "llm-foundry"


def test_build_env_runs_the_set_up_once_more(outside: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = fake(outside, repo, "exit 0")
    monkeypatch.setenv("PYTHON", "python3")
    assert environment.build() == python  # it is there, so that nothing is installed
    monkeypatch.setenv("PYTHON", str(tmp_path / "no-python"))
    with pytest.raises(ValueError, match="--build-env: scripts/setup.sh foundry failed"):
        environment.build()
