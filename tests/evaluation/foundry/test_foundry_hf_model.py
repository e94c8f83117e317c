"""Stock models of Hugging Face beside LLM Foundry's own Hugging Face path; runs in its environment only (scripts/test.sh)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("llmfoundry")

from llmfoundry.models.hf.hf_causal_lm import ComposerHFCausalLM
from llmfoundry.utils.builders import build_icl_evaluators
from stock_models import save, stock, with_begin
from test_foundry_bridge import entry, file_of
from transformers import AutoTokenizer

from open_lm.evaluation import icl
from open_lm.evaluation.answers import generate_answers, is_right_answer
from open_lm.evaluation.benchmark import load_data_sets
from open_lm.evaluation.foundry.bridge import BridgeOptions, OpenLM, foundry_tokenizer, score_entries
from open_lm.evaluation.foundry.datasets import PREFIX
from open_lm.evaluation.foundry.entries import METRICS
from open_lm.evaluation.models import ModelChoice, open_model
from open_lm.evaluation.scorer import ScorerOptions, score_requests
from open_lm.evaluation.tasks import parse_task_file
from open_lm.tokenizer import Tokenizer


def verdicts(model: Any, evaluator: Any, metric_name: str) -> Iterator[tuple[list[int], list[bool]]]:
    """Of each batch: the choice of every question where there are choices, and whether it is right, by LLM Foundry's metric."""
    for batch in evaluator.dataloader.dataloader:
        metric = model.get_metrics(is_train=False)[metric_name]
        outputs = model.eval_forward(batch)
        said = metric.update(batch=batch, outputs=outputs, labels=model.labels)
        yield [int(i) for i in said.get("selected_choice_idx", [])], [bool(one) for one in said["result"]]


def flat(found: Iterator[tuple[list[int], list[bool]]]) -> tuple[list[int], list[bool]]:
    chosen, right = zip(*found, strict=True)
    return [i for part in chosen for i in part], [one for part in right for one in part]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_bridge_and_native_choose_as_llm_foundrys_own_model_does(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """llama's tokenizer puts <s> before a text and its vocabulary is larger than the tokenizer's; gpt2 has learned positions."""
    begun = with_begin(tokenizer) if kind == "llama" else tokenizer
    more = {"bos_token": "<s>", "pad_token": "<s>"} if kind == "llama" else {"bos_token": "<|endoftext|>"}
    folder = str(save(tmp_path / kind, stock(kind, 310), begun, **more))
    opened = open_model(folder, hf=True, choice=ModelChoice(), tokenizer=None, device="cpu")
    auto = AutoTokenizer.from_pretrained(folder)
    theirs = ComposerHFCausalLM(tokenizer=auto, pretrained_model_name_or_path=folder, trust_remote_code=False).eval()
    ours = OpenLM(opened.model, foundry_tokenizer(opened.tokenizer, opened.declared))
    entries = [entry(task, tmp_path) for task in METRICS]
    options = {cut: BridgeOptions(60, cut=cut) for cut in ((True, False) if kind == "llama" else (True,))}
    bridged = {
        cut: score_entries(opened.model, opened.tokenizer, file_of(*entries), o, declared=opened.declared) for cut, o in options.items()
    }
    native = parse_task_file({"icl_tasks": entries}, "tasks.yaml").tasks
    for config in entries:
        task, metric = config["icl_task_type"], METRICS[config["icl_task_type"]]
        builds = []
        for prefix, tok, name in (("", auto, "stock"), (PREFIX, ours.tokenizer, "ours")):
            (tmp_path / f"{task}-{name}").mkdir()
            full = {**config, "icl_task_type": prefix + task, "metric_names": [metric]}
            builds.append(build_icl_evaluators([full], tok, 60, 4, destination_dir=str(tmp_path / f"{task}-{name}"))[0])
        for stock_one, our_one in zip(*builds, strict=True):
            their_choices, their_right = flat(verdicts(theirs, stock_one, metric))
            assert flat(verdicts(ours, our_one, metric)) == (their_choices, their_right), stock_one.label
            assert all(bridged[cut][stock_one.label].accuracy == pytest.approx(sum(their_right) / len(their_right)) for cut in options)
        for one in (one for one in native if one.label == config["label"]):
            [data] = load_data_sets(one, opened.tokenizer, 60)
            [stock_one] = [built for built in builds[0] if built.label == data.name]
            their_choices, their_right = flat(verdicts(theirs, stock_one, metric))
            if data.max_new_tokens:
                texts = generate_answers(opened.model, opened.tokenizer, one, data.questions, data.max_new_tokens, ScorerOptions())
                assert [is_right_answer(one, text, q.aliases) for text, q in zip(texts, data.questions, strict=True)] == their_right
                continue
            scores = iter(score_requests(opened.model, [r for q in data.questions for r in q.requests], ScorerOptions()))
            answers = [[next(scores) for _ in question.requests] for question in data.questions]
            assert [icl.is_right(one, q, found) for q, found in zip(data.questions, answers, strict=True)] == their_right
            if their_choices:
                assert [icl.choice(found) for found in answers] == their_choices
