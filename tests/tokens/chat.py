"""Chats, a tokenizer with a chat template, and shards of them, for the tests of instruction data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from small_corpus import WORDS

from open_lm.params.fields import options_of
from open_lm.shards.index import read_index
from open_lm.shards.manifest import read_manifest
from open_lm.tokens.instruct.command import Summary, make_instruct
from open_lm.tokens.instruct.options import InstructOptions, InstructOutput, InstructRun, RecordOptions, TemplateOptions
from open_lm.tokens.preprocess import Sizes

SMALL = Sizes(unit_bytes=4_000, bucket_text_bytes=20_000)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOPICS = (RecordOptions, TemplateOptions, InstructOutput, InstructRun)


def make_tokenizer(folder: Path, template: str | None = CHATML) -> Path:
    """A byte-level BPE of 400 ids with the tokens of ChatML, and a tokenizer_config.json with a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": "<|endoftext|>"}, **({"chat_template": template} if template else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def random_chats(count: int, seed: int, words: int = 12) -> list[dict[str, Any]]:
    """Conversations of one to four exchanges, some with a system message."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, words))) + rng.choice(["", ".", " é", "\n"])

    def chat() -> list[dict[str, str]]:
        first = [{"role": "system", "content": text()}] if rng.random() < 0.3 else []
        turns = rng.randint(1, 4)
        return first + [{"role": role, "content": text()} for _ in range(turns) for role in ("user", "assistant")]

    return [{"messages": chat()} for _ in range(count)]


def write_lines(path: Path, records: list[Any]) -> Path:
    """Records as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make(paths: list[Any], tokenizer: Path, out: Path | str, **options: Any) -> Summary:
    """Shards of some files, with small defaults."""
    values = {"seq_len": 128, "shard_size": 16, "num_workers": 1, **options}
    values |= {"input_files": tuple(map(str, paths)), "tokenizer": str(tokenizer), "output_dir": str(out)}
    known = options_of(TOPICS)
    topics = [topic(**{name: value for name, value in values.items() if known[name].topic is topic}) for topic in TOPICS]
    return make_instruct(InstructOptions(*topics), SMALL)


def stored_rows(root: Path) -> np.ndarray:
    """int32 [rows, seq_len + 1] of all shards of an output, in order."""
    found = []
    for manifest in sorted(root.glob("*/manifest.jsonl")):
        for entry in read_manifest(str(manifest)):
            path = manifest.parent / f"{entry.shard}.tar"
            index = read_index(path, "npy")
            data = path.read_bytes()
            for at, size, dtype in zip(index.offsets.tolist(), index.sizes.tolist(), index.dtypes):
                assert dtype == np.int32
                found.append(np.frombuffer(data[at : at + size], dtype).reshape(-1, index.length))
    return np.concatenate(found)


def read_ids(tokens: np.ndarray) -> np.ndarray:
    """Ids as a model reads them."""
    return np.where(tokens < 0, ~tokens, tokens)
