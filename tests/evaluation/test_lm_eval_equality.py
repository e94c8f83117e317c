"""Under lm-evaluation-harness, our scorer beside its own Hugging Face model on the same folder: every number, flag and text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stock_models import llama_twin, save, stock, with_begin

from open_lm.evaluation.command import run_eval
from open_lm.evaluation.models import ModelChoice, OpenModel, open_model
from open_lm.evaluation.scorer import ScorerOptions
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

WORDS = ["what a day", "a cat", "a dog saw", "a hat on a mat", "that mat", "a saw", "what", "a day and a hat"]
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "num_fewshot": 1,
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "last_words": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{' ' ~ choices[0]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "whole_texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{(q or 'a') | replace('<s>', '')}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["a d", "zz"], "max_gen_toks": 7, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four tasks on twelve rows: contexts that are empty, that end in a space, that begin with <s>, that are longer than the model."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for i in range(12):
        question = " ".join(WORDS[(i * k) % 8] for k in range(1 + i % 4)) + [" ", "", "."][i % 3]
        question = {3: "", 5: "<s>" + question, 7: "a cat saw a hat. " * 9}.get(i, question)
        choices = [WORDS[(i + k) % 8] for k in range(2 + i % 3)]
        rows.append({"q": question, "choices": choices, "gold": i % len(choices), "text": " ".join(WORDS[i % 8 :] * (1 + 3 * (i % 4)))})
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.dump({"task": name, **data, **task}))
    return str(folder)


def evaluate(model: Any, tasks: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of each task what lm-eval says, and what it was told of each question in its order."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks, include_defaults=False)
    told = simple_evaluate(model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, verbosity="ERROR")
    assert told is not None
    samples = {name: sorted(told["samples"][name], key=lambda sample: sample["doc_id"]) for name in TASKS}
    return told["results"], {name: [sample["resps"] for sample in rows] for name, rows in samples.items()}


def check(folder: Path, opened: OpenModel, tasks: str) -> None:
    """lm-eval's model on the folder and ours, in every number."""
    from lm_eval.models.huggingface import HFLM

    from open_lm.evaluation.lm_eval_backend import HarnessModel

    ours = HarnessModel(opened.model, opened.tokenizer, ScorerOptions(batch_tokens=200), begin=opened.declared.begin)
    theirs = HFLM(str(folder), device="cpu", dtype="float32", batch_size=4)
    assert (ours.max_length, ours.prefix_token_id, ours.eot_token_id) == (theirs.max_length, theirs.prefix_token_id, theirs.eot_token_id)
    results, answers = evaluate(ours, tasks)
    expected, said = evaluate(theirs, tasks)
    for task, numbers in expected.items():
        same = {key: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value for key, value in numbers.items()}
        assert results[task] == same, task
    for task in ("choices", "last_words"):
        pairs = [(a[0], b[0]) for one, other in zip(answers[task], said[task], strict=True) for a, b in zip(one, other, strict=True)]
        for (value, greedy), (their_value, their_greedy) in pairs:
            assert float(value) == pytest.approx(float(their_value), rel=1e-4) and str(greedy) == str(their_greedy)
    sums = [[float(one[0][0]) for one in rows["whole_texts"]] for rows in (answers, said)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-4) and min(sums[1]) < 4 * max(sums[1])
    assert answers["answers"] == said["answers"] and len({str(one) for one in said["answers"]}) > 3
    assert any(results[task][f"{metric},none"] > 0 for task, metric in (("choices", "acc"), ("choices", "acc_norm")))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_stock_model_is_scored_as_by_lm_evals_own(kind: str, tmp_path: Path, tokenizer: Tokenizer, tasks: str) -> None:
    """gpt2 has learned positions and a tokenizer that names a begin of text but adds none; llama's puts it before every text."""
    begun = with_begin(tokenizer, put=kind == "llama")
    folder = save(tmp_path / kind, stock(kind, 310), begun, bos_token="<s>")
    check(folder, open_model(str(folder), hf=True, choice=ModelChoice(), tokenizer=None, device="cpu"), tasks)


@torch.no_grad()
def test_a_checkpoint_of_ours_is_scored_as_its_exported_copy_by_lm_evals_own(tmp_path: Path, tokenizer: Tokenizer, tasks: str) -> None:
    torch.manual_seed(1)
    shape = ModelConfig(hidden_dim=32, n_layers=2, n_heads=2, seq_len=64, vocab_size=300, model_norm="rms_norm", n_kv_heads=1)
    model = Transformer(shape)
    model.init_weights()
    model.output.weight.mul_(8)
    for block in model.layers:
        block.attention_norm.weight.uniform_(0.5, 1.5)
    twin = llama_twin(model.eval())
    ids = torch.randint(300, (2, 40))
    assert torch.allclose(model(ids), twin(ids).logits, rtol=1e-4, atol=1e-4)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "one.pt")
    (tmp_path / "model.json").write_text(json.dumps(shape.to_dict()))
    (tmp_path / "tokenizer.json").write_text(tokenizer.json_text)
    checkpoint, config, text = (str(tmp_path / name) for name in ("one.pt", "model.json", "tokenizer.json"))
    folder = save(tmp_path / "copy", twin, tokenizer)
    check(folder, open_model(checkpoint, hf=False, choice=ModelChoice(config), tokenizer=text, device="cpu"), tasks)

    arguments = ["--tasks", "choices,answers", "--include-path", tasks, "--checkpoint", checkpoint, "--hf-model", str(folder)]
    arguments += ["--model-config", config, "--tokenizer", text, "--device", "cpu", "--out", str(tmp_path / "out.json")]
    run_eval(arguments)
    one, copy = json.loads((tmp_path / "out.json").read_text()).values()
    assert {name: r["accuracy"] for name, r in one.items()} == {name: r["accuracy"] for name, r in copy.items()}
    assert list(one) == ["choices/1-shot", "choices:acc_norm/1-shot", "answers/0-shot"]
