"""What the benchmark of scores reads: the first rows of each data set, task files for every harness, random models in two forms.

The random model is of a kind that a stock class of transformers computes too (RMS norm, rotary, SwiGLU, no query/key norm): its
weights stand in a file of ours and in a LlamaForCausalLM folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from open_lm.checkpoint.weights import write_weights
from open_lm.model.config import ModelConfig, model_config_from
from open_lm.model.transformer import Transformer

ARC = {"icl_task_type": "multiple_choice", "continuation_delimiter": "\nAnswer: "}
TASKS: tuple[dict[str, Any], ...] = (
    {"label": "arc_easy", "num_fewshot": [0, 2], **ARC},
    {"label": "arc_challenge", "num_fewshot": [0], **ARC},
    {"label": "boolq", "num_fewshot": [0], **ARC},
    {"label": "copa", "num_fewshot": [0], "icl_task_type": "multiple_choice"},
    {"label": "winograd_wsc", "num_fewshot": [0, 3], "icl_task_type": "schema"},
    {"label": "lambada_openai", "num_fewshot": [0], "icl_task_type": "language_modeling"},
)
"""The data sets of data/eval, with the numbers of examples and the delimiters of data/golden/foundry."""
NAMES = tuple(f"{task['label']}/{shots}-shot" for task in TASKS for shots in task["num_fewshot"])
CHOICES = tuple(task["label"] for task in TASKS if task["icl_task_type"] == "multiple_choice")
"""What lm-eval is asked, without examples."""


@dataclass(frozen=True)
class Inputs:
    """Of one model's columns."""

    weights: Path
    config: Path
    tokenizer: Path
    tasks: Path
    """Folder with one task YAML a name of NAMES, and `lm-eval/` with those of CHOICES."""
    stock: Path | None = None
    """Folder of the same model as a LlamaForCausalLM."""


def task_file(folder: Path, name: str) -> Path:
    """The YAML of one task."""
    return folder / f"{name.replace('/', '-')}.yaml"


def write_tasks(source: Path, folder: Path, rows: int) -> Path:
    """Task files on the first `rows` of each data set; gives the folder."""
    (folder / "lm-eval").mkdir(parents=True)
    for task in TASKS:
        lines = (source / f"{task['label']}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        data = folder / f"{task['label']}.jsonl"
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for shots in task["num_fewshot"]:
            entry = {**task, "num_fewshot": [shots], "dataset_uri": str(data)}
            task_file(folder, f"{task['label']}/{shots}-shot").write_text(yaml.safe_dump({"icl_tasks": [entry]}), encoding="utf-8")
        if task["label"] in CHOICES:
            (folder / f"lm-eval/{task['label']}.yaml").write_text(yaml.safe_dump(_harness_task(task, data)), encoding="utf-8")
    return folder


def _harness_task(task: Mapping[str, Any], data: Path) -> dict[str, Any]:
    return {
        "task": f"bench_{task['label']}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{query}}" + str(task.get("continuation_delimiter", " ")).rstrip(),
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def twin_config(values: Mapping[str, Any]) -> ModelConfig:
    """A model of the same shape that Llama's class computes too."""
    config = model_config_from(values, "benchmark")
    return replace(
        config, model_norm="rms_norm", qk_norm=False, positional_embedding_type="rotary", ffn_type="swiglu", post_embed_norm=False
    )


def write_twins(config: ModelConfig, tokenizer: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Random weights as our file, its configuration, and a stock folder.

    Raises:
        RuntimeError: their logits differ.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = Transformer(config).eval()
    model.init_weights()
    write_weights(folder / "epoch_1.pt", model.state_dict(), {"epoch": 1, "name": "random", "model_config": config.to_dict()})
    (folder / "model.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    stock = _stock(model)
    ids = torch.randint(0, config.vocab_size, (2, 48))
    with torch.no_grad():
        apart = float((stock(input_ids=ids).logits.float() - model(ids)).abs().max())
    if not apart < 1e-3:
        raise RuntimeError(f"the stock model's logits differ from ours by up to {apart}")
    stock.save_pretrained(folder / "stock")
    _save_tokenizer(tokenizer, folder / "stock")
    return folder / "epoch_1.pt", folder / "model.json", folder / "stock"


def _stock(model: Transformer) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours, config = model.state_dict(), model.config
    shape = LlamaConfig(
        hidden_size=config.hidden_dim, intermediate_size=config.ffn_dim, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.kv_heads, head_dim=config.head_dim,
        vocab_size=config.vocab_size, max_position_embeddings=config.seq_len, rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.weight_tying, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = {"model.embed_tokens.weight": ours["tok_embeddings.weight"], "model.norm.weight": ours["norm.weight"]}
    theirs["lm_head.weight"] = ours["output.weight"]
    for i in range(config.n_layers):
        from_, to = f"layers.{i}.", f"model.layers.{i}."
        q, k, v = ours[f"{from_}attention.in_proj.weight"].split(model.layers[i].attention.widths)  # type: ignore[arg-type, union-attr]
        gate, up = ours[f"{from_}feed_forward.w12.weight"].chunk(2)
        theirs |= {f"{to}self_attn.{name}_proj.weight": part for name, part in (("q", q), ("k", k), ("v", v))}
        theirs[f"{to}self_attn.o_proj.weight"] = ours[f"{from_}attention.out_proj.weight"]
        theirs |= {f"{to}mlp.gate_proj.weight": gate, f"{to}mlp.up_proj.weight": up}
        theirs[f"{to}mlp.down_proj.weight"] = ours[f"{from_}feed_forward.w3.weight"]
        theirs[f"{to}input_layernorm.weight"] = ours[f"{from_}attention_norm.weight"]
        theirs[f"{to}post_attention_layernorm.weight"] = ours[f"{from_}ffn_norm.weight"]
    stock = LlamaForCausalLM(shape).eval()
    missing, unexpected = stock.load_state_dict({name: value.contiguous() for name, value in theirs.items()}, strict=False)
    assert not unexpected and all("inv_freq" in name for name in missing), (missing, unexpected)
    return stock


def _save_tokenizer(file: Path, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=end, bos_token=end, pad_token="<|padding|>").save_pretrained(folder)
