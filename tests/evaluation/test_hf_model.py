"""Stock models of transformers behind the scorer: their own logits, their own generation, the same command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from open_lm.evaluation.command import run_eval
from open_lm.evaluation.hf_model import HFModel
from open_lm.evaluation.icl import Request
from open_lm.evaluation.scorer import ScorerOptions, score_requests
from open_lm.tokenizer import Tokenizer

pytestmark = pytest.mark.slow  # to import transformers takes seconds
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
SIZES = {
    "llama": {**WIDTHS, "num_hidden_layers": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "gemma2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
}  # gemma2 caps its logits, gpt2 ties its head


def stock(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=300, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0, **SIZES[kind]
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # random heads say nothing
    return model.eval()


REQUESTS = [Request([5, 6, 7, 8, 9], 3), Request([4, 4], 1), Request(list(range(20)), 15)]


@pytest.mark.parametrize("kind", list(SIZES))
@torch.no_grad()
def test_scores_are_those_of_the_models_own_logits(kind: str) -> None:
    model = stock(kind)
    found = score_requests(HFModel(model), REQUESTS, ScorerOptions())
    for request, score in zip(REQUESTS, found, strict=True):
        logits = model(torch.tensor([request.input_ids])).logits[0, request.start - 1 : -1]
        loss = F.cross_entropy(logits, torch.tensor(request.input_ids[request.start :]))
        assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
        assert score.greedy == (logits.argmax(-1).tolist() == request.input_ids[request.start :])
    assert HFModel(model).seq_len == (64 if kind != "gpt2" else model.config.n_positions)


@torch.no_grad()
def test_prompts_of_unequal_length_continue_greedily_as_they_do_alone() -> None:
    model = stock("llama")
    prompts, alone = [[5, 6, 7], [9] * 11], []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        alone.append(ids[len(prompt) :])
    assert HFModel(model).generate(prompts, 6, lambda ids: False, eot_id=299) == alone
    eot = alone[0][2]
    first, _ = HFModel(model).generate(prompts, 6, lambda ids: False, eot_id=eot)
    assert first == alone[0][: alone[0].index(eot)]
    first, _ = HFModel(model).generate(prompts, 6, lambda ids: len(ids) == 2, eot_id=299)
    assert first == alone[0][:2]


def save(folder: Path, tokenizer: Tokenizer) -> None:
    stock("llama").save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.json_text)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


def test_the_command_scores_a_folder_of_a_stock_model(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "llama", tokenizer)
    rows = [
        {"context": f"a cat saw {i}", "answer": "a hat", "query": f"a cat {i}", "choices": ["a hat", "a mat"], "gold": i % 2}
        for i in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [
        {"label": kind, "dataset_uri": str(tmp_path / "rows.jsonl"), "num_fewshot": [1], "icl_task_type": kind}
        for kind in ("multiple_choice", "generation_task_with_answers")
    ]
    (tmp_path / "tasks.yaml").write_text(json.dumps({"icl_tasks": tasks}))
    name, out = str(tmp_path / "llama"), tmp_path / "out.json"
    run_eval(["--eval-yaml", str(tmp_path / "tasks.yaml"), "--hf-model", name, "--out", str(out), "--device", "cpu"])
    scores = json.loads(out.read_text())[name]
    assert list(scores) == ["multiple_choice/1-shot", "generation_task_with_answers/1-shot"]
    assert all(one["questions"] == 6 for one in scores.values())
    assert "llama" in capsys.readouterr().out


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text("icl_tasks: []")
    (tmp_path / "empty").mkdir()
    from open_lm.evaluation.hf_model import load_hf_model

    with pytest.raises(ValueError, match=r"--hf-model .*empty: can't be loaded") as error:
        load_hf_model(str(tmp_path / "empty"), "cpu")
    assert "\n" not in str(error.value)
