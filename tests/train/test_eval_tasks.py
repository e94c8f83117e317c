"""--eval-tasks in the loop: the scores of the saved weights, the same training, and failures that end nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from open_lm.evaluation import tasks_in_training
from open_lm.evaluation.benchmark import score_tasks
from open_lm.evaluation.scorer import ScorerOptions
from open_lm.evaluation.tasks import read_task_file
from open_lm.tokenizer import load_tokenizer

Main = Callable[..., int]
TYPES = ("multiple_choice", "language_modeling", "generation_task_with_answers")


@pytest.fixture
def tasks(bench: Any) -> list[str]:
    """Flags of three tasks over counting, in words of a tokenizer whose ids are those words."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    words = {f"w{number}": number for number in range(62)} | {"<|endoftext|>": 62, "<unk>": 63}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|endoftext|>"])
    backend.save(str(bench.folder / "words.json"))

    def text(*numbers: int) -> str:
        return " ".join(f"w{number % 62}" for number in numbers)

    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in TYPES}
    for n in range(12):
        before, right = text(*range(n, n + 2 + n % 5)), text(n + 2 + n % 5)
        rows["multiple_choice"].append({"query": before, "choices": [text(n + 30), right, text(n + 20, n)], "gold": 1})
        rows["language_modeling"].append({"context": before, "continuation": right})
        rows["generation_task_with_answers"].append({"context": before, "answer": right, "aliases": [right]})
    lines = ["icl_tasks:"]
    for kind, data in rows.items():
        (bench.folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
        lines += [f"- {{label: {kind}, dataset_uri: {kind}.jsonl, num_fewshot: [0], icl_task_type: {kind}}}"]
    (bench.folder / "tasks.yaml").write_text("\n".join(lines))
    return ["--eval-tasks", str(bench.folder / "tasks.yaml"), "--tokenizer", str(bench.folder / "words.json")]


def told(bench: Any, name: str) -> list[dict[str, Any]]:
    lines = (bench.folder / "logs" / name / "checkpoints/eval_tasks.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def scores(line: dict[str, Any]) -> dict[str, float]:
    return {name: one["accuracy"] for name, one in line["results"].items()}


def scores_of_file(bench: Any, name: str, epoch: int) -> dict[str, float]:
    from open_lm import load_model

    model, _ = load_model(bench.folder / "logs" / name / f"checkpoints/epoch_{epoch}.pt")
    file, tokenizer = read_task_file(str(bench.folder / "tasks.yaml")), load_tokenizer(str(bench.folder / "words.json"))
    found = score_tasks(model, tokenizer, file.tasks, max_seq_len=32, options=ScorerOptions())
    return {task: one.accuracy for task, one in found.items()}


@pytest.mark.slow
def test_scores_are_those_of_the_saved_weights_and_training_is_the_same(bench: Any, main_here: Main, tasks: list[str]) -> None:
    assert main_here("plain") == 0
    assert main_here("scored", *tasks, "--eval-tasks-frequency", "2", "--report-to", "tensorboard") == 0
    lines = told(bench, "scored")
    assert [(line["epoch"], line["step"], line["failed"]) for line in lines] == [(2, 20, {}), (3, 30, {})]
    for line in lines:
        assert scores(line) == scores_of_file(bench, "scored", line["epoch"])
    assert scores(lines[-1])["multiple_choice/0-shot"] > 0.5
    assert bench.metrics("scored") == bench.metrics("plain")
    assert "multiple_choice/0-shot: accuracy" in bench.log("scored")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(bench.folder / "logs/scored/tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("eval/multiple_choice/0-shot")] == [20, 30]


def test_a_failure_in_a_task_is_told_and_the_run_goes_on(
    bench: Any, main_here: Main, tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def grade(task: Any, data: Any, *rest: Any) -> list[bool]:
        if task.label == "language_modeling":
            raise torch.OutOfMemoryError("no memory left")
        (bench.folder / "multiple_choice.jsonl").write_text("{")  # what is scored was read before training
        return [True] * len(data.questions)

    monkeypatch.setattr(tasks_in_training, "grade", grade)
    assert main_here("a", *tasks) == 0
    assert len(bench.metrics("a")) == 30
    first, second, third = told(bench, "a")
    assert first["failed"] == {"language_modeling/0-shot": "OutOfMemoryError: no memory left"}
    assert set(scores(first)) == {"multiple_choice/0-shot", "generation_task_with_answers/0-shot"}
    assert first["results"].keys() == second["results"].keys() == third["results"].keys()
    assert "failed, and the run goes on without its score: OutOfMemoryError: no memory left" in bench.log("a")


def test_mistakes_in_the_tasks_are_told_before_training(
    bench: Any, main_here: Main, tasks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (bench.folder / "language_modeling.jsonl").write_text('{"context": 3}\n')
    assert main_here("a", *tasks[:2]) == 2
    error = capsys.readouterr().err
    assert "language_modeling.jsonl line 1" in error
    assert "--tokenizer" in error
    assert main_here("a", "--eval-tasks", "none.yaml") == 2
    assert "--eval-tasks none.yaml: no such file" in capsys.readouterr().err
    (bench.folder / "language_modeling.jsonl").write_text('{"context": "w1", "continuation": "w2"}\n')
    (bench.folder / "generation_task_with_answers.jsonl").write_text(json.dumps({"context": "w1", "answer": "w2 " * 40}))
    assert main_here("a", *tasks) == 2
    assert "generation_task_with_answers/0-shot: max_seq_len 32: no room for an answer of 40 tokens" in capsys.readouterr().err
    assert not (bench.folder / "logs").exists()


def test_a_resumed_run_has_each_score_once(bench: Any, main_here: Main, tasks: list[str]) -> None:
    assert main_here("a", *tasks) == 0
    for step in (20, 30):
        state = bench.folder / f"logs/a/checkpoints/step_{step}"
        for path in state.iterdir():
            path.unlink()
        state.rmdir()
    for epoch in (2, 3):
        Path(bench.folder / f"logs/a/checkpoints/epoch_{epoch}.pt").unlink()
    before = told(bench, "a")
    assert main_here("a", *tasks, "--resume", "latest") == 0
    assert [(line["step"], scores(line)) for line in told(bench, "a")] == [(line["step"], scores(line)) for line in before]


def test_a_run_that_is_killed_while_it_scores_has_its_weights_and_tells_which_scores_it_lost(
    bench: Any, main_here: Main, tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> list[bool]:
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(tasks_in_training, "grade", killed)
        with pytest.raises(SystemExit):
            main_here("a", *tasks, "--epochs", "1", "--averagers", "ema_0.9_1")
    files = {path.name for path in (bench.folder / "logs/a/checkpoints").glob("*.pt")}
    assert files == {"epoch_1.pt", "stats_1.pt", "ema_0.9_1_1.pt"}
    words = "lacks the scores of epoch_1.pt; eval/eval_openlm_ckpt.py"
    assert main_here("a", *tasks, "--epochs", "1", "--resume", "latest") == 0  # there is nothing left to train
    assert bench.log("a").count(words) == 1
    assert main_here("a", *tasks, "--epochs", "2", "--resume", "latest") == 0
    assert bench.log("a").count(words) == 2
    assert [line["epoch"] for line in told(bench, "a")] == [2]


def test_a_run_that_is_asked_to_end_leaves_the_other_tasks_unscored(
    bench: Any, main_here: Main, tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def grade(*_: Any) -> list[bool]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # for the thread that notes it
        return [True]

    monkeypatch.setattr(tasks_in_training, "grade", grade)
    assert main_here("a", *tasks) == 3
    (line,) = told(bench, "a")
    assert set(scores(line)) == {"multiple_choice/0-shot"}
    assert set(line["failed"].values()) == {"not scored: the run was asked to end"} and len(line["failed"]) == 2
    assert json.loads((bench.folder / "logs/a/ending.json").read_text())["why"] == "SIGTERM"


def test_a_task_with_categories_has_a_row_of_its_own_and_none_where_a_part_fails(
    bench: Any, main_here: Main, tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"query": f"w{n}", "choices": ["w1", "w2"], "gold": 0, "category": "aab"[n % 3]} for n in range(6)]
    (bench.folder / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = "{label: %s, dataset_uri: parts.jsonl, num_fewshot: [0], icl_task_type: multiple_choice, has_categories: true}"
    (bench.folder / "tasks.yaml").write_text("icl_tasks:\n" + "".join(f"- {entry % label}\n" for label in ("whole", "torn")))

    def grade(task: Any, data: Any, *_: Any) -> list[bool]:
        if data.name == "torn/0-shot/b":
            raise OSError("gone")
        return [True, False, True, True] if data.name.endswith("a") else [False, False]

    monkeypatch.setattr(tasks_in_training, "grade", grade)
    assert main_here("a", *tasks, "--epochs", "1") == 0
    (line,) = told(bench, "a")
    assert scores(line) == {"whole/0-shot": 0.375, "whole/0-shot/a": 0.75, "whole/0-shot/b": 0.0}
    assert line["results"]["whole/0-shot"]["questions"] == 6
    assert line["results"]["whole/0-shot"]["stderr"] == pytest.approx(0.125)
    assert line["failed"] == {"torn/0-shot": "OSError: gone"}
    assert "whole/0-shot: accuracy 0.3750 (6 questions" in bench.log("a")


def test_a_run_without_training_scores_its_checkpoint_too(bench: Any, main_here: Main, tasks: list[str]) -> None:
    from open_lm.main import main

    file = bench.folder / "tasks.yaml"
    file.write_text(file.read_text().replace("num_fewshot: [0], icl_task_type: language", "num_fewshot: [12], icl_task_type: language"))
    assert main_here("a", *tasks, "--epochs", "1") == 0
    flags = ["--precision", "fp32", "--workers", "0", *tasks, "--pretrained", str(bench.folder / "logs/a")]
    flags += ["--logs-dir", str(bench.folder / "logs"), "--name"]
    assert main([*flags, "b", "--val-data", str(bench.folder / "shards/shard-0000000.tar")]) == 0
    assert main([*flags, "c"]) == 0
    for name in ("b", "c"):
        assert [scores(line) for line in told(bench, name)] == [scores(told(bench, "a")[-1])]
        assert told(bench, name)[0]["checkpoint_path"].endswith("a/checkpoints/epoch_1.pt")
    for name in ("a", "b", "c"):
        assert "language_modeling/11-shot" in told(bench, name)[0]["results"]
        words = "11 examples before a question in place of 12, since there are 12 rows"
        words += "; 12 of 12 questions lose their left end to max_seq_len 32"
        assert bench.log(name).count(f"tasks.yaml: language_modeling/11-shot: {words}") == 1
    assert (bench.folder / "logs/b/checkpoints/results.jsonl").is_file()
    assert not (bench.folder / "logs/c/checkpoints/results.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--fsdp"], []])
def test_two_processes_score_as_the_saved_weights_do(bench: Any, tasks: list[str], way: list[str]) -> None:
    done = bench.run(2, "two", *tasks, *way, "--lr", "1e-2")
    assert done.returncode == 0, done.stderr
    lines = told(bench, "two")
    assert [line["failed"] for line in lines] == [{}, {}, {}]
    for line in lines:
        assert scores(line) == scores_of_file(bench, "two", line["epoch"])
    assert scores(lines[-1])["multiple_choice/0-shot"] > 0.5
