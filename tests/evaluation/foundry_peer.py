"""Runs in LLM Foundry's environment: its own data sets and metrics on task files, as JSON, for test_foundry_equality.py.

usage: foundry_peer.py CHECKPOINT MODEL_CONFIG OUT.json TASKS.yaml TOKENIZER.json [TASKS.yaml TOKENIZER.json ...]
The model's logits are those of whole, plain, unbatched forward passes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
import yaml
from llmfoundry.eval.datasets import in_context_learning_evaluation as foundry
from llmfoundry.eval.metrics import nlp
from llmfoundry.utils.builders import build_icl_evaluators

from open_lm.checkpoint.load import load_model

SAID: list[tuple[str, bool]] = []


class Recorder(transformers.PreTrainedTokenizerFast):
    """Remembers every text that it was given, and whether special tokens were to be added."""

    def __call__(self, text: Any, add_special_tokens: bool = True, **more: Any) -> Any:
        SAID.append((text, add_special_tokens))
        return super().__call__(text, add_special_tokens=add_special_tokens, **more)


def look(dataset: Any, model: Any, tokenizer: Any) -> dict[str, Any]:
    """What is read of each question, and the metric's verdict."""
    SAID.clear()
    rows = [dataset[i] for i in range(len(dataset))]
    texts = list(SAID)
    generated = isinstance(dataset, foundry.InContextLearningGenerationTaskWithAnswersDataset)
    judge = judge_generated if generated else judge_scored
    requests, verdict = judge([dataset.collate_fn([row]) for row in rows], model, tokenizer)
    return {"texts": texts, "requests": requests, **verdict}


def judge_scored(batches: list[Any], model: Any, tokenizer: Any) -> Any:
    choices = "choice_groupings" in batches[0]
    metric = nlp.InContextLearningMultipleChoiceAccuracy() if choices else nlp.InContextLearningLMAccuracy()
    requests, right, chosen = [], [], []
    for batch in batches:
        for ids, span in zip(batch["input_ids"], batch["continuation_indices"], strict=True):
            requests.append([ids[: int(span[-1]) + 1].tolist(), int(span[0])])
        labels = batch["labels"].roll(-1, dims=1)
        labels[:, -1] = -100
        outputs = torch.stack([model(ids[None])[0] for ids in batch["input_ids"]])
        said = metric.update(batch, outputs, labels)
        right += said["result"]
        chosen += said.get("selected_choice_idx", [])
    return requests, {"right": right, "chosen": chosen, "accuracy": float(metric.compute())}


def judge_generated(batches: list[Any], model: Any, tokenizer: Any) -> Any:
    metric = nlp.InContextLearningGenerationExactMatchAccuracy()
    requests, right, new = [], [], 0
    for batch in batches:
        ids = batch["input_ids"][0][batch["attention_mask"][0]]
        requests.append([ids.tolist(), len(ids)])
        start, new = len(ids), batch["generation_kwargs"]["max_new_tokens"]
        for _ in range(new):
            best = model(ids[None], head=lambda hidden, weight: hidden[0, -1] @ weight.T).argmax()
            ids = torch.cat((ids, best[None]))
            if int(best) == batch["generation_kwargs"]["eos_token_id"]:
                break
        outputs = tokenizer.batch_decode([ids[start:]], skip_special_tokens=True)
        right += metric.update(batch, outputs, batch["labels"])["result"]
    return requests, {"right": right, "chosen": [], "accuracy": float(metric.compute()), "max_new_tokens": new}


def recorder(tokenizer_file: str) -> Recorder:
    """With the end of text that our models have, and padding where there is some."""
    with open(tokenizer_file) as file:
        known = {token["content"] for token in json.load(file)["added_tokens"]}
    pad = {"pad_token": "<|padding|>"} if "<|padding|>" in known else {}
    return Recorder(tokenizer_file=tokenizer_file, eos_token="<|endoftext|>", **pad)


def main() -> None:
    checkpoint, config, out, *pairs = sys.argv[1:]
    torch.set_num_threads(1)
    model, _ = load_model(checkpoint, config)
    found = []
    for tasks, tokenizer_file in zip(pairs[::2], pairs[1::2], strict=True):
        tokenizer = recorder(tokenizer_file)
        with open(tasks) as file:
            content = yaml.safe_load(file)
        evaluators, _ = build_icl_evaluators(content["icl_tasks"], tokenizer, content["max_seq_len"], 1, tempfile.mkdtemp())
        with torch.no_grad():
            found.append({one.label: look(one.dataloader.dataloader.dataset, model, tokenizer) for one in evaluators})
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
