"""eval/eval_openlm_ckpt.py: options, output, and one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stock_models import save, stock

from open_lm.checkpoint.average import average_weights
from open_lm.checkpoint.convert import export_weights
from open_lm.evaluation import command
from open_lm.evaluation.command import parse_eval, run_eval
from open_lm.evaluation.processes import Processes
from open_lm.evaluation.tasks import Task
from open_lm.model.transformer import Transformer
from open_lm.params.fields import UserError
from open_lm.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: two checkpoints that carry nothing, their config, a tokenizer and a task file."""
    for name in ("one.pt", "two.pt"):
        torch.save({"epoch": 1, "name": "x", "state_dict": model.state_dict()}, tmp_path / name)
    (tmp_path / "model.json").write_text(json.dumps(model.config.to_dict()))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text(tokenizer.json_text)
    rows = [{"query": f"a cat saw {i}", "choices": ["a hat", "a mat"], "gold": i % 2} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks.yaml").write_text(
        "icl_tasks:\n- {label: hats, dataset_uri: rows.jsonl, num_fewshot: [0, 1], icl_task_type: multiple_choice}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("open_lm.evaluation.models.choose_device", lambda named: "cpu")
    return tmp_path


MODEL = ["--eval-yaml", "tasks.yaml", "--model-config", "model.json"]


def test_several_checkpoints_give_a_table_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_eval([*MODEL, "--checkpoint", "one.pt", "two.pt", "--tokenizer", "tokenizer", "--out", "results.json"])
    out = capsys.readouterr().out
    header, _, first, *_ = out.splitlines()
    assert "one.pt" in header and "two.pt" in header and first.startswith("| hats/0-shot")
    content = json.loads((folder / "results.json").read_text())
    assert list(content) == ["one.pt", "two.pt"]
    for tasks in content.values():
        assert list(tasks) == ["hats/0-shot", "hats/1-shot"]
        assert all(0 <= task["accuracy"] <= 1 and task["questions"] == 6 for task in tasks.values())
    assert f"{content['one.pt']['hats/0-shot']['accuracy']:.4f}" in first


def test_the_table_goes_to_every_file_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", "r.json", "r.csv", "r.md", "--reference", "mpt-7b"]
    run_eval([*MODEL, "--checkpoint", "one.pt", "--tokenizer", "tokenizer", "--backend", "native", *out])
    told = capsys.readouterr()
    assert "backend native" in told.err and "MPT-7B" in told.out
    assert (folder / "r.md").read_text() == told.out
    assert (folder / "r.csv").read_text().startswith("task,questions,one.pt,") and (folder / "r.json").is_file()


def test_finished_tasks_are_kept_and_not_scored_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_lm.evaluation import benchmark

    command, grade, scored = (
        [*MODEL, "--checkpoint", "one.pt", "two.pt", "--tokenizer", "tokenizer", "--out", "r.json"],
        benchmark.grade,
        [],
    )

    def interrupted(task: Task, *rest: Any) -> list[bool]:
        scored.append(task.name)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return grade(task, *rest)

    monkeypatch.setattr(benchmark, "grade", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_eval(command)
    kept = json.loads((folder / "r.json").read_text())
    assert {name: list(column) for name, column in kept.items()} == {"one.pt": ["hats/0-shot", "hats/1-shot"]}
    assert "hats/1-shot" in capsys.readouterr().out
    run_eval(command)
    assert scored[3:] == ["hats/0-shot", "hats/1-shot"] and "one.pt: hats/0-shot: " in capsys.readouterr().err
    assert json.loads((folder / "r.json").read_text())["one.pt"] == kept["one.pt"]
    run_eval(command)
    assert len(scored) == 5
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().replace("saw 5", "saw a"))
    run_eval(command)
    assert len(scored) == 9
    run_eval([*command, "--max-seq-len", "60"])
    assert len(scored) == 13
    run_eval([*command, "--max-seq-len", "60", "--overwrite"])
    assert len(scored) == 17
    (folder / "r.json").write_text("my notes")
    with pytest.raises(ValueError, match=r"--out r\.json: "):
        run_eval(command)
    assert (folder / "r.json").read_text() == "my notes"


def test_results_of_tasks_of_an_include_path_hold_while_its_files_do(folder: Path) -> None:
    pytest.importorskip("lm_eval")
    (folder / "more/deep").mkdir(parents=True)
    more, found = folder / "more/deep/mine.yaml", set()
    for text in ("task: mine", "task: mine\nnum_fewshot: 1"):
        more.write_text(text)
        asked = parse_eval(["--checkpoint", "one.pt", "--tasks", "mine", "--include-path", "more"])
        found |= {tuple(command._inputs("one.pt", *asked, Processes())) for _ in range(2)}
    assert len(found) == 2


def test_limit_scores_the_first_questions(folder: Path) -> None:
    run_eval([*MODEL, "--checkpoint", "one.pt", "--tokenizer", "tokenizer", "--limit", "2", "--out", "results.json"])
    assert json.loads((folder / "results.json").read_text())["one.pt"]["hats/1-shot"]["questions"] == 2


def test_examples_that_lack_and_questions_that_are_cut_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = folder / "tasks.yaml"
    tasks.write_text(tasks.read_text().replace("[0, 1]", "[6]"))
    run_eval([*MODEL, "--checkpoint", "one.pt", "--tokenizer", "tokenizer", "--max-seq-len", "12"])
    told = capsys.readouterr()
    words = "5 examples before a question in place of 6, since there are 6 rows; 6 of 6 questions lose their left end to max_seq_len 12"
    assert f"one.pt: hats/5-shot: {words}\n" in told.err
    assert "hats/5-shot" in told.out and "6-shot" not in told.out


def test_a_checkpoint_without_tokenizer_asks_for_one(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"--tokenizer: the checkpoint carries none; give a tokenizer\.json"):
        run_eval([*MODEL, "--checkpoint", "one.pt"])


def test_a_tokenizer_beyond_the_models_vocabulary_is_refused(folder: Path, tokenizer: Tokenizer) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    backend.add_tokens([f"extra{i}" for i in range(50)])
    backend.save(str(folder / "large.json"))
    with pytest.raises(ValueError, match=r"--tokenizer large\.json: has ids up to .*, the model knows 300"):
        run_eval([*MODEL, "--checkpoint", "one.pt", "--tokenizer", "large.json"])


def test_a_tokenizer_that_is_not_the_checkpoints_own_is_refused_before_anything_is_scored(
    folder: Path, model: Transformer, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(tokenizer.json_text)
    (folder / "other.json").write_text(json.dumps({**content, "pre_tokenizer": {"type": "Whitespace"}}))
    (folder / "again.json").write_text(json.dumps(content, indent=4))
    for name in ("own.pt", "more.pt"):
        torch.save({"state_dict": model.state_dict(), "model_config": model.config.to_dict(), **tokenizer.in_checkpoint()}, folder / name)
    run = ["--eval-yaml", "tasks.yaml", "--limit", "1", "--checkpoint", "own.pt", "--tokenizer"]
    words = (
        r"--tokenizer other.json: the tokenizer other.json \(sha256 \w+\) is another one than own.pt \(sha256 \w+\) of checkpoint own.pt"
    )
    with pytest.raises(UserError, match=words):
        run_eval([*run, "other.json"])
    assert capsys.readouterr().err == ""
    assert run_eval([*run, "other.json", "--allow-tokenizer-mismatch"]) == run_eval([*run, "again.json"]) == 0
    assert "carries none" not in capsys.readouterr().err
    run_eval([*MODEL, "--limit", "1", "--checkpoint", "one.pt", "--tokenizer", "other.json"])
    assert "one.pt: tokenizer other.json; the checkpoint carries none" in capsys.readouterr().err
    torch.save({"state_dict": model.state_dict(), "tokenizer_json": (folder / "other.json").read_text()}, folder / "more.pt")
    with pytest.raises(UserError, match=r"checkpoint more.pt: the tokenizer more.pt .* of checkpoint own.pt"):
        average_weights(["own.pt", "more.pt"])
    assert average_weights(["own.pt", "more.pt"], allow_mismatch=True).about["tokenizer_json"] == tokenizer.json_text
    with pytest.raises(UserError, match=r"--tokenizer other.json.* is another one than own.pt"):
        export_weights("own.pt", "out", tokenizer="other.json")
    assert export_weights("own.pt", "out", tokenizer="other.json", allow_mismatch=True).is_file()


def test_all_problems_of_the_command_line_come_together(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        parse_eval(["--eval-yaml", "gone.yaml", "--model", "a", "--model-config", "b", "--checkpoint", "no.pt", "--limit", "0"])
    text = "\n".join(error.value.problems)
    assert all(word in text for word in ("gone.yaml", "--model-config b", "--checkpoint no.pt", "--limit 0"))
    with pytest.raises(UserError) as error:
        parse_eval([*MODEL, "--checkpoint", "one.pt", "--out", "x.xls", "--reference", "GPT-5", "--backend", "llm-foundry"])
    assert ["--out x.xls" in error.value.problems[0], "--reference GPT-5" in error.value.problems[1]] == [True, True]


def test_options_of_lm_evals_tasks_are_refused_without_them(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        parse_eval([*MODEL, "--checkpoint", "one.pt", "--num-fewshot", "2", "--include-path", "more"])
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["--include-path", "--num-fewshot"]
    assert all("only with --backend lm-eval" in problem for problem in error.value.problems)


@pytest.mark.slow
def test_the_file_runs_from_its_own_folder(folder: Path, repo: Path) -> None:
    command = [sys.executable, "eval_openlm_ckpt.py", "--eval-yaml", str(folder / "tasks.yaml"), "--checkpoint", str(folder / "one.pt")]
    more = ["--model-config", str(folder / "model.json"), "--tokenizer", str(folder / "tokenizer"), "--device", "cpu"]
    done = subprocess.run([*command, *more], cwd=repo / "eval", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| hats/0-shot |" in done.stdout
    wrong = subprocess.run([*command, "--model", "open_lm_1bb"], cwd=repo / "eval", capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "open_lm_1b" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(folder: Path, repo: Path, tokenizer: Tokenizer) -> None:
    """A checkpoint and a stock model of Hugging Face in one table."""
    rows = [
        {"context": f"a cat saw {i}", "answer": "a", "query": f"a dog {i}", "choices": ["a hat", "a mat"], "gold": i % 2} for i in range(7)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with (folder / "tasks.yaml").open("a") as file:
        file.write("- {label: answers, dataset_uri: rows.jsonl, num_fewshot: [0], icl_task_type: generation_task_with_answers}\n")
    save(folder / "stock", stock("llama"), tokenizer)
    arguments = [*MODEL, "--checkpoint", "one.pt", "--tokenizer", "tokenizer", "--hf-model", "stock"]
    arguments += ["--device", "cpu", "--batch-tokens", "40"]
    run_eval([*arguments, "--out", "alone.json"])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(repo / "eval/eval_openlm_ckpt.py"), *arguments, "--out", "both.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| hats/0-shot") == 1  # the first process alone speaks
    alone, both = (json.loads((folder / name).read_text()) for name in ("alone.json", "both.json"))
    scores = [
        {(model, name): (one["accuracy"], one["questions"]) for model in found for name, one in found[model].items()}
        for found in (alone, both)
    ]
    assert scores[0] == scores[1] and list(alone) == ["one.pt", "stock"] and len(scores[0]) == 6
