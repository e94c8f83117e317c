"""Our model on LLM Foundry's evaluators; runs in its environment only (scripts/test.sh)."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

pytest.importorskip("llmfoundry")

from llmfoundry.utils.builders import build_icl_evaluators
from stock_models import save, stock

from open_lm.evaluation.benchmark import score_tasks
from open_lm.evaluation.command import run_eval
from open_lm.evaluation.foundry.bridge import BridgeOptions, foundry_tokenizer, score_entries
from open_lm.evaluation.foundry.datasets import PREFIX
from open_lm.evaluation.foundry.entries import METRICS, FoundryFile, parse_entries
from open_lm.evaluation.models import ModelChoice, open_model
from open_lm.evaluation.scorer import ScorerOptions
from open_lm.evaluation.tasks import parse_task_file
from open_lm.generation import generate
from open_lm.model.transformer import Transformer
from open_lm.params.fields import UserError
from open_lm.tokenizer import Tokenizer, load_tokenizer

WORDS = ["what a day", "a cat", "a dog saw", "a hat on a mat", "that mat", "a saw", "what", "a day and a hat"]


def rows_of(kind: str, n: int = 9) -> list[dict[str, Any]]:
    """Questions of a task type: choices of differing number and length, categories of differing size, chains of thought."""
    rng = random.Random(kind)

    def text() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 3)))

    rows: list[dict[str, Any]] = []
    for i in range(n):
        category = {"category": "big" if i % 3 else "small"}
        if kind == "multiple_choice":
            choices = [text() for _ in range(2 + i % 3)]
            rows.append({"query": text() + " ", "choices": choices, "gold": i % len(choices), **category})
        elif kind == "schema":
            rows.append({"context_options": [text(), text()], "continuation": text(), "gold": i % 2, **category})
        elif kind == "language_modeling":
            rows.append({"context": text(), "continuation": text(), **category})
        else:
            chain = {"chain_of_thought": text()}
            rows.append({"context": text(), "answer": text(), "aliases": [text(), "a"], **chain, **category})
    return rows


def entry(kind: str, folder: Path, **more: Any) -> dict[str, Any]:
    path = folder / f"{kind}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_of(kind))))
    base: dict[str, Any] = {"label": kind, "dataset_uri": str(path), "num_fewshot": [0, 2], "icl_task_type": kind, "max_seq_len": 60}
    if kind == "generation_task_with_answers":
        base |= {"cot_delimiter": " hat", "early_stopping_criteria": ["\n", "dog"]}
    return base | {"continuation_delimiter": "\nAnswer: ", "question_prelimiter": "Q: ", **more}


def file_of(*entries: dict[str, Any]) -> FoundryFile:
    return parse_entries({"icl_tasks": list(entries)}, "tasks.yaml")


@pytest.mark.parametrize("kind", METRICS)
def test_openlm_defect_30_batches_are_llm_foundrys_own_without_the_padding(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    theirs = foundry_tokenizer(tokenizer)
    config = {**entry(kind, tmp_path), "metric_names": [METRICS[kind]]}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    stock, _ = build_icl_evaluators([copy.deepcopy(config)], theirs, 60, 4, destination_dir=str(tmp_path / "a"))
    ours, _ = build_icl_evaluators([{**config, "icl_task_type": PREFIX + kind}], theirs, 60, 4, destination_dir=str(tmp_path / "b"))
    narrow = 0
    for theirs_one, ours_one in zip(stock, ours, strict=True):
        batches = list(zip(theirs_one.dataloader.dataloader, ours_one.dataloader.dataloader, strict=True))
        for long, short in batches:
            assert long.keys() == short.keys()
            width = short["input_ids"].shape[1]
            narrow += width < long["input_ids"].shape[1]
            left = kind == "generation_task_with_answers"
            assert torch.equal(short["input_ids"], long["input_ids"][:, -width:] if left else long["input_ids"][:, :width])
            rest = long["input_ids"][:, :-width] if left else long["input_ids"][:, width:]
            assert (rest == theirs.eos_token_id).all()
            for key in ("gold_indices", "choice_groupings", "cot_delimiter", "do_normalization"):
                assert long.get(key) == short.get(key)
            if left:
                assert [set(one) for one in long["labels"]] == [set(one) for one in short["labels"]]
                assert long["generation_kwargs"]["max_new_tokens"] == short["generation_kwargs"]["max_new_tokens"]
            else:
                spans = zip(long["continuation_indices"], short["continuation_indices"], strict=True)
                assert all(torch.equal(a, b) for a, b in spans)
    assert narrow


@pytest.mark.parametrize("kind", METRICS)
def test_names_and_notices_are_those_of_the_native_backend(kind: str, tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    scarce = entry(kind, tmp_path, num_fewshot=[0, 7, 12], max_seq_len=100)
    found = judged(model, tokenizer, scarce, entry(kind, tmp_path, label="c", num_fewshot=4, has_categories=True), max_seq_len=60)
    assert list(found) == [f"{kind}/0-shot", f"{kind}/7-shot", f"{kind}/8-shot", "c/4-shot/big", "c/2-shot/small"]


@pytest.mark.parametrize("kind", METRICS)
def test_cutting_changes_no_score(kind: str, tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    file = file_of(entry(kind, tmp_path), entry(kind, tmp_path, label="parts", has_categories=True))
    seen: dict[str, int] = {}
    short = score_entries(model, tokenizer, file, BridgeOptions(64), lambda name, result, longest: seen.update({name: longest}))
    long = score_entries(model, tokenizer, file, BridgeOptions(64, cut=False))
    assert {name: r.accuracy for name, r in short.items()} == {name: r.accuracy for name, r in long.items()}
    assert list(short) == [f"{kind}/0-shot", f"{kind}/2-shot", *(f"parts/{n}-shot/{part}" for n in (0, 2) for part in ("big", "small"))]
    assert [short[f"parts/0-shot/{part}"].questions for part in ("big", "small")] == [6, 3]
    assert all(length <= 60 for length in seen.values()) and min(seen.values()) < 60
    limited = score_entries(model, tokenizer, file_of(entry(kind, tmp_path)), BridgeOptions(64, limit=4))
    assert {r.questions for r in limited.values()} == {4}


def test_generation_goes_on_after_the_prompt_and_is_graded_by_its_start(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    contexts = ["what a day", "a cat and a dog saw"]
    answers = [tokenizer.decode(generate(model, [tokenizer.encode(c)], max_new_tokens=3)[0]) for c in contexts]
    rows = [{"context": c, "answer": a + " and more", "aliases": [a]} for c, a in zip(contexts, answers, strict=True)]
    rows.append({"context": "a hat", "answer": "zzz", "aliases": []})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task = {"label": "x", "dataset_uri": str(path), "num_fewshot": 0, "icl_task_type": "question_answering", "continuation_delimiter": ""}
    results = score_entries(model, tokenizer, file_of(task | {"do_normalization": False}), BridgeOptions(64))
    assert results["x/0-shot"].accuracy == pytest.approx(2 / 3)


def test_keys_that_llm_foundry_does_not_know_are_named(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"schema: unknown key prompt_strin\..*prompt_string"):
        score_entries(model, tokenizer, file_of(entry("schema", tmp_path, prompt_strin="x")), BridgeOptions(64))
    with pytest.raises(ValueError, match="schema: LLM Foundry can't read .*category"):
        path = tmp_path / "bare.jsonl"
        path.write_text(json.dumps({"context_options": ["a", "b"], "continuation": "c", "gold": 0}))
        task = entry("schema", tmp_path, has_categories=True) | {"dataset_uri": str(path)}
        score_entries(model, tokenizer, file_of(task), BridgeOptions(64))


def judged(model: Transformer, tokenizer: Tokenizer, *entries: dict[str, Any], max_seq_len: int) -> dict[str, float]:
    """Accuracies of both backends, which are the same."""
    content = {"icl_tasks": list(entries)}
    notices: tuple[list[str], list[str]] = ([], [])
    theirs = score_entries(model, tokenizer, parse_entries(content, "t.yaml"), BridgeOptions(max_seq_len), tell=notices[0].append)
    tasks = parse_task_file(content, "t.yaml").tasks
    ours = score_tasks(model, tokenizer, tasks, max_seq_len=max_seq_len, options=ScorerOptions(), tell=notices[1].append)
    assert notices[0] == notices[1]
    found = {name: result.accuracy for name, result in theirs.items()}
    assert found == {name: result.accuracy for name, result in ours.items()}
    return found


def answers_of(path: Path, model: Transformer, tokenizer: Tokenizer, before: list[int], words: int, new: int = 3) -> dict[str, Any]:
    """A task whose answers are what the model says to each context behind `before`, whatever its length."""
    rng = random.Random(3)
    contexts = [" ".join(rng.choice(WORDS) for _ in range(words + i)) for i in range(8)]
    prompts = [before + tokenizer.encode(context) for context in contexts]
    said = generate(model, prompts, max_new_tokens=new, max_seq_len=1000, eot_id=tokenizer.eot_id)
    rows = [{"context": c, "answer": tokenizer.decode(ids, skip_special_tokens=True)} for c, ids in zip(contexts, said, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    base = {"label": "x", "dataset_uri": str(path), "num_fewshot": 0, "icl_task_type": "generation_task_with_answers"}
    return base | {"continuation_delimiter": "", "do_normalization": False}


def test_prompts_beyond_the_models_length_are_read_whole_where_the_yaml_allows_it(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    task = answers_of(tmp_path / "rows.jsonl", model, tokenizer, [], 70)
    assert model.config.seq_len == 64
    assert judged(model, tokenizer, task, task | {"label": "cut", "max_seq_len": 40}, max_seq_len=400)["x/0-shot"] == 1


def test_the_end_of_text_that_a_tokenizer_puts_before_every_text_is_masked_where_it_is_the_padding(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    eot = tokenizer.eot_token
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{eot} $A", special_tokens=[(eot, tokenizer.eot_id)])
    begun = Tokenizer(backend.to_str(), "begun")
    assert begun.encode_batch(["a"], special_tokens=True)[0][0] == begun.pad_id
    masked = answers_of(tmp_path / "masked.jsonl", model, tokenizer, [], 5)
    seen = answers_of(tmp_path / "seen.jsonl", model, tokenizer, [tokenizer.eot_id], 5) | {"label": "seen"}
    found = judged(model, begun, masked, seen, max_seq_len=60)
    assert found["x/0-shot"] == 1 > found["seen/0-shot"]


def test_settings_of_a_generation_are_honoured(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    task = answers_of(tmp_path / "rows.jsonl", model, tokenizer, [], 5, new=4)
    said = generate(
        model, [tokenizer.encode(json.loads((tmp_path / "rows.jsonl").read_text().split("\n")[0])["context"])], max_new_tokens=2
    )
    settings: list[dict[str, Any]] = [{"max_new_tokens": 2}, {"use_cache": False, "pad_token_id": 5}, {"eos_token_id": said[0][1]}]
    tasks = [task | {"label": f"{n}", "generation_kwargs": one} for n, one in enumerate(settings)]
    found = judged(model, tokenizer, *tasks, max_seq_len=60)
    assert found["0/0-shot"] < found["1/0-shot"] == 1 > found["2/0-shot"]


def test_an_empty_choice_is_named(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    backend.normalizer = tokenizers.normalizers.Replace(" ", "_")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"query": "a", "choices": ["b", ""], "gold": 0}))
    with pytest.raises(ValueError, match="multiple_choice: .*an empty continuation can't be scored"):
        task = entry("multiple_choice", tmp_path) | {"dataset_uri": str(path), "num_fewshot": 0}
        score_entries(model, Tokenizer(backend.to_str(), "spaceless"), file_of(task), BridgeOptions(64))


def test_rows_are_looked_at_before_llm_foundry_reads_them(tmp_path: Path, shared: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    (tmp_path / "model.json").write_text(json.dumps(model.config.to_dict()))
    (tmp_path / "tokenizer.json").write_text(tokenizer.json_text)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "one.pt")
    task = {"label": "half", "dataset_uri": str(shared / "data/cases/half_a_surrogate.jsonl"), "num_fewshot": 0}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"icl_tasks": [task | {"icl_task_type": "multiple_choice"}]}))
    flags = ["--eval-yaml", "tasks.yaml", "--checkpoint", "one.pt", "--model-config", "model.json", "--tokenizer", "tokenizer.json"]
    flags = [str(tmp_path / one) if "." in one else one for one in flags]
    with pytest.raises(UserError, match=r"half_a_surrogate.jsonl line 1: has half a surrogate pair .* at character 20"):
        run_eval([*flags, "--backend", "llm-foundry", "--device", "cpu"])


@pytest.mark.slow
def test_the_golden_model_scores_as_written_down(shared: Path) -> None:
    from open_lm.checkpoint.load import load_model

    folder = shared / "data/golden/foundry"
    rows = json.loads((folder / "expected.json").read_text())["tasks"]
    keys = ("label", "num_fewshot", "icl_task_type", "continuation_delimiter", "fewshot_random_seed", "max_seq_len")
    tasks = [{key: row[key] for key in keys} | {"dataset_uri": str(folder / row["file"])} for row in rows]
    model, _ = load_model(shared / "data/golden/small_lm/epoch_1.pt", str(shared / "data/golden/small_lm/model_config.json"))
    tokenizer = load_tokenizer(str(shared / "data/tokenizers/20B_tokenizer.json"))
    results = score_entries(model, tokenizer, file_of(*tasks), BridgeOptions(2048))
    assert [r.accuracy for r in results.values()] == [row["expected"] for row in rows]
    assert {r.questions for r in results.values()} == {100}


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path: Path, repo: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "one.pt")
    (tmp_path / "model.json").write_text(json.dumps(model.config.to_dict()))
    (tmp_path / "tokenizer.json").write_text(tokenizer.json_text)
    tasks = [entry(kind, tmp_path) for kind in METRICS] + [entry("schema", tmp_path, label="parts", has_categories=True)]
    (tmp_path / "tasks.yaml").write_text(json.dumps({"max_seq_len": 60, "device_eval_batch_size": 4, "icl_tasks": tasks}))
    stranger = save(tmp_path / "stock", stock("llama"), tokenizer)
    command = [str(repo / "eval/eval_openlm_ckpt.py"), "--eval-yaml", "tasks.yaml", "--checkpoint", "one.pt"]
    command += ["--model-config", "model.json", "--tokenizer", "tokenizer.json", "--device", "cpu", "--hf-model", "stock", "--out"]
    opened = open_model(str(stranger), hf=True, choice=ModelChoice(), tokenizer=None, device="cpu")
    alone = {
        name: score_entries(scored, tokenizer, file_of(*tasks), BridgeOptions(60))
        for name, scored in (("one.pt", model), ("stock", opened.model))
    }
    before = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    twice = [sys.executable, *before, *command, "two.json"]
    done = subprocess.run(twice, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "backend llm-foundry" in done.stderr and done.stdout.count("| schema/0-shot") == 1
    content = json.loads((tmp_path / "two.json").read_text())
    assert list(content) == ["one.pt", "stock"] and all(len(found) == 12 for found in content.values())
    for name, found in content.items():
        expected = {task: (r.accuracy, r.questions) for task, r in alone[name].items()}
        assert {task: (r["accuracy"], r["questions"]) for task, r in found.items()} == expected
    whole = [*content["one.pt"]]
    left = {task: one for task, one in content["one.pt"].items() if not task.startswith("schema/")}
    (tmp_path / "two.json").write_text(json.dumps({**content, "one.pt": left}))
    done = subprocess.run(twice, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert "stock: nothing to score" in done.stderr, done.stderr[-3000:]
    assert [*json.loads((tmp_path / "two.json").read_text())["one.pt"]] == whole
