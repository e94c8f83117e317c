"""Checkpoints of every generation are scored: their positions, their dict, and no more memory than the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from open_lm.checkpoint.load import load_model
from open_lm.evaluation.command import run_eval
from open_lm.evaluation.icl import Request
from open_lm.evaluation.scorer import ScorerOptions, score_requests
from open_lm.generation import generate, next_logits
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.model.zoo import get_model_config
from open_lm.tokenizer import Tokenizer


@pytest.mark.parametrize("variant", ["default", "gelu_tied", "head_rotary", "qk_gainlp"])
@torch.no_grad()
def test_scores_and_answers_of_golden_models_are_those_of_their_plain_logits(shared: Path, variant: str) -> None:
    folder = shared / "data/golden/models" / variant
    model, _ = load_model(folder / "epoch_1.pt", str(folder / "model_config.json"))
    context = [(7 * i) % 384 for i in range(40)]
    requests = [Request(context + choice, 40) for choice in ([3, 4, 5], [6, 7], [8])]
    for request, score in zip(requests, score_requests(model, requests, ScorerOptions()), strict=True):
        loss = F.cross_entropy(model(torch.tensor([request.input_ids]))[0, 39:-1], torch.tensor(request.input_ids[40:]))
        assert score.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    prompts = [context, [5]]
    sequences = [list(prompt) for prompt in prompts]
    for _ in range(6):
        for sequence, logits in zip(sequences, next_logits(model, sequences), strict=True):
            sequence.append(int(logits.argmax()))
    assert generate(model, prompts, max_new_tokens=6) == [s[len(p) :] for s, p in zip(sequences, prompts, strict=True)]


def first_generation(path: Path, config: ModelConfig) -> None:
    """Random weights in the dict of OpenLM's first releases: names as DDP gave them, the optimizer beside them."""
    torch.manual_seed(0)
    model = Transformer(config)
    model.init_weights()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 1, "name": "open_lm_1b", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}, "loss": 2.5}, path)
    (path.parent / "model.json").write_text(json.dumps(config.to_dict()))


def test_a_first_generation_dict_with_head_rotary_is_scored(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(hidden_dim=64, n_layers=2, n_heads=4, seq_len=64, vocab_size=304, positional_embedding_type="head_rotary")
    first_generation(tmp_path / "epoch_1.pt", config)
    (tmp_path / "tokenizer.json").write_text(tokenizer.json_text)
    rows = [{"query": f"a cat saw {i}", "choices": ["a hat", "a mat"], "gold": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"label": "hats", "dataset_uri": str(tmp_path / "rows.jsonl"), "num_fewshot": [1], "icl_task_type": "multiple_choice"}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"icl_tasks": [task]}))
    model = ["--model-config", str(tmp_path / "model.json"), "--tokenizer", str(tmp_path / "tokenizer.json"), "--device", "cpu"]
    run_eval(["--eval-yaml", str(tmp_path / "tasks.yaml"), "--checkpoint", str(tmp_path / "epoch_1.pt"), *model])
    assert "| hats/1-shot |" in capsys.readouterr().out


LOAD = """
import sys, threading, time

def private():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024

from open_lm.evaluation.models import ModelChoice, open_model
import open_lm.model.head, torch._dynamo
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
before, peak, done = private(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, private())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
opened = open_model(sys.argv[1], hf=False, choice=ModelChoice(sys.argv[2]), tokenizer=sys.argv[3], device="cpu")
done = True
thread.join()
print((peak - before) / sum(p.numel() * 4 for p in opened.model.parameters()))

from open_lm.evaluation.icl import Request
from open_lm.evaluation.scorer import ScorerOptions, score_requests
[score] = score_requests(opened.model, [Request([5, 6, 7, 8], 2)], ScorerOptions())
assert 1 < score.perplexity < 1e9
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path, repo: Path, tokenizer: Tokenizer) -> None:
    """450 MB of weights; with OPENLM_1B=1 those of OpenLM-1B, 5.8 GB, on disk and in memory."""
    config = ModelConfig(hidden_dim=1024, n_layers=4, n_heads=8, seq_len=64, vocab_size=30_000, positional_embedding_type="head_rotary")
    if os.environ.get("OPENLM_1B"):
        config = get_model_config("open_lm_1b_old")
    first_generation(tmp_path / "epoch_1.pt", config)
    (tmp_path / "tokenizer.json").write_text(tokenizer.json_text)
    command = [sys.executable, "-c", LOAD, tmp_path / "epoch_1.pt", tmp_path / "model.json", tmp_path / "tokenizer.json"]
    done = subprocess.run([str(part) for part in command], cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.05
