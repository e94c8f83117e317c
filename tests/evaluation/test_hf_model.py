"""Stock models of transformers behind the scorer: their own logits, their own generation, the same command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from stock_models import SIZES, save, stock, with_begin

from open_lm.evaluation.command import parse_eval, run_eval
from open_lm.evaluation.hf_model import HFModel, load_hf_model
from open_lm.evaluation.hf_tokenizer import load_hf_tokenizer
from open_lm.evaluation.icl import Request
from open_lm.evaluation.models import ModelChoice, open_model
from open_lm.evaluation.scorer import ScorerOptions, score_requests
from open_lm.params.fields import UserError
from open_lm.tokenizer import Tokenizer

pytestmark = pytest.mark.slow  # to import transformers takes seconds

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


def test_the_command_scores_a_folder_of_a_stock_model(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "llama", stock("llama"), tokenizer)
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


def load(folder: Path) -> HFModel:
    return load_hf_model(str(folder), "cpu")


def test_what_is_no_model_is_one_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--hf-model .*empty: can't be loaded") as error:
        load(tmp_path / "empty")
    assert "\n" not in str(error.value)
    (tmp_path / "tasks.yaml").write_text("icl_tasks: []")
    with pytest.raises(UserError, match=r"--hf-model \./gone: no such folder") as error:
        parse_eval(["--eval-yaml", str(tmp_path / "tasks.yaml"), "--hf-model", "./gone", "--model", "open_lm_1b"])
    assert "--model open_lm_1b: is for --checkpoint; Hugging Face models carry their configuration" in str(error.value)
    folder = save(tmp_path / "part", stock("llama"), tokenizer)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"its weights lack 1 tensor, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_model_that_sees_the_tokens_to_come_is_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, architectures=["BertLMHeadModel"]
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its BertLMHeadModel sees the tokens to come; give a causal language model"):
        load(tmp_path)


def test_code_beside_the_weights_is_not_run(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    stranger = save(tmp_path / "stranger", stock("llama"), tokenizer, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (stranger / "evil.py").write_text(code + "class Tokenizer: pass\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((stranger / "config.json").read_text())
    more = {"model_type": "stranger", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (stranger / "config.json").write_text(json.dumps(config | more))
    with pytest.raises(ValueError, match="code that lies beside its weights, which is never run"):
        load(stranger)
    assert load_hf_tokenizer(str(stranger))[0].eot_token == "<|endoftext|>"
    (stranger / "config.json").write_text(json.dumps(config | {"auto_map": more["auto_map"]}))
    assert load(stranger).vocab_size == 300  # a stock class, whatever lies beside it
    assert not ran.exists()


@torch.no_grad()
def test_weights_in_bfloat16_are_scored_in_fp32(tmp_path: Path, tokenizer: Tokenizer) -> None:
    low = stock("gpt2").to(torch.bfloat16)
    model = load(save(tmp_path / "low", low, tokenizer))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    found = score_requests(model, REQUESTS, ScorerOptions())
    wide = score_requests(HFModel(low.float()), REQUESTS, ScorerOptions())
    assert [score.perplexity for score in found] == pytest.approx([score.perplexity for score in wide], rel=1e-6)
    rough = score_requests(model, REQUESTS, ScorerOptions(precision="amp_bfloat16"))
    assert [s.perplexity for s in rough] != [s.perplexity for s in found]
    assert [s.perplexity for s in rough] == pytest.approx([s.perplexity for s in found], rel=0.2)


def test_learned_positions_end_where_they_end(tokenizer: Tokenizer) -> None:
    model = HFModel(stock("gpt2"))
    with pytest.raises(ValueError, match=r"a request of 69 tokens, and the model has learned positions for 64; give --max-seq-len 64"):
        score_requests(model, [Request([5] * 70, 3)], ScorerOptions())
    with pytest.raises(ValueError, match="give --max-seq-len 64"):
        model.generate([[5] * 60], 5, lambda ids: False, eot_id=0)
    score_requests(HFModel(stock("llama")), [Request([5] * 70, 3)], ScorerOptions())


def test_tokenizers_come_from_a_folder_a_file_or_what_transformers_makes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A begin of sequence is told and put before texts; a vocabulary of the model beyond the tokenizer's is fine, the other way isn't."""
    begun = with_begin(tokenizer)
    folder = save(tmp_path / "a", stock("llama", 320), begun, bos_token="<s>", pad_token="zzz")
    opened = open_model(str(folder), hf=True, choice=ModelChoice(), tokenizer=None, device="cpu")
    assert (opened.declared.begin, opened.declared.pad, opened.tokenizer.sha256) == ("<s>", None, begun.sha256)
    assert opened.tokenizer.encode_batch(["a cat"], special_tokens=True)[0][0] == begun.token_id("<s>")
    (tmp_path / "other.json").write_text(tokenizer.json_text)
    named = open_model(str(folder), hf=True, choice=ModelChoice(), tokenizer=str(tmp_path / "other.json"), device="cpu")
    assert named.tokenizer.sha256 == tokenizer.sha256 and named.declared.begin is None
    small = save(tmp_path / "small", stock("llama", begun.vocab_size - 1), begun)
    with pytest.raises(ValueError, match=f"has ids up to .*, the model knows {begun.vocab_size - 1}"):
        open_model(str(small), hf=True, choice=ModelChoice(), tokenizer=None, device="cpu")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"a sentencepiece file")
    with pytest.raises(ValueError, match=r"--hf-model .*: has no tokenizer that can be read .*tokenizer\.json with --tokenizer") as error:
        open_model(str(folder), hf=True, choice=ModelChoice(), tokenizer=None, device="cpu")
    assert "\n" not in str(error.value)
    content = json.loads(tokenizer.json_text)["model"]
    old = tmp_path / "old"
    stock("gpt2").save_pretrained(old)  # as the first models came: vocab.json and merges.txt
    (old / "vocab.json").write_text(json.dumps(content["vocab"]))
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in content["merges"]) + "\n")
    text = "a cat saw what a day!"
    assert open_model(str(old), hf=True, choice=ModelChoice(), tokenizer=None, device="cpu").tokenizer.encode(text) == tokenizer.encode(
        text
    )


@pytest.mark.parametrize(("name", "words"), [("model.safetensors", "Git LFS pointer"), ("config.json", "HTML or XML page"), ("a.bin", "")])
def test_another_file_in_the_place_of_a_models_is_named(tmp_path: Path, tokenizer: Tokenizer, name: str, words: str) -> None:
    save(tmp_path, stock("llama"), tokenizer)
    (tmp_path / name).write_bytes(b"<html>" if name == "config.json" else b"version https://git-lfs.github.com/spec/v1\n")
    if name == "a.bin":
        (tmp_path / "model.safetensors").unlink()
        (tmp_path / "a.bin").rename(tmp_path / "pytorch_model.bin")
        name, words = "pytorch_model.bin", "Git LFS pointer"
    with pytest.raises(ValueError, match=rf"--hf-model .*\({name} is an? {words}") as caught:
        load_hf_model(str(tmp_path), "cpu")
    assert "weights_only" not in str(caught.value)
