"""Tokenizers made on the fly, and the comparison that every test here makes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from open_lm.fast_tokenizer import FastEncoder
from open_lm.tokenizer import Tokenizer

WORDS = (
    "the quick brown fox jumps over lazy dog's isn't we'll café naïve 123 45.67 HELLO x=1; foo_bar 你好 Привет 한국어 def f(): \n\n  return"
)
AWKWARD = [" ", "  ", "   ", "\n", "\t", "\r\n", "\u00a0", "\u2028", "\u3000", "\u200d", "'", "'s", "'LL", "a", "Z", "1", "23", "4567"]
AWKWARD += ["\u0301", "\u0327", "\u0338", "\u0345", "\uac00", "\u1100", "\u1161", "é", "ſ", "İ", "中", "😀", "\u0344", "\u2126", "\u212a"]
AWKWARD += ["<|endoftext|>", "<|padding|>", "<|", "|>", "endoftext", "\x00", "\x85", "\ufeff", "\u0f71", "\u0f80", "か", "\u3099", "्"]
AWKWARD += ["the", " quick", " Fox", "foo", "bar", "<foo>", "▁", "_", "-", ".", "...", ">", "=", "\u08d3", "\u0eba", "\u1abf", "\U0001e130"]
AWKWARD += ["\U00011930", "\u088f", "\U0002b73a", " " * 28]


def awkward_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of pieces that tokenizers are known to stumble over."""
    rng = random.Random(seed)
    return ["".join(rng.choices(AWKWARD, k=rng.randint(0, 12))) for _ in range(count)]


def byte_level(**options: Any) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


def trained(
    pre_tokenizer: Any = None, normalizer: Any = None, model: models.Model | None = None, special: Sequence[str] = ("<|endoftext|>",)
) -> tokenizers.Tokenizer:
    """A small BPE over `WORDS`; byte-level unless told otherwise."""
    backend = tokenizers.Tokenizer(model or models.BPE())
    backend.pre_tokenizer = pre_tokenizer or byte_level()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    rng = random.Random(1)
    backend.train_from_iterator([" ".join(rng.choices(WORDS.split(" "), k=30)) for _ in range(200)], trainer)
    return backend


def wrapped(backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(backend.to_str(), "built")


def expected_ids(encoder: FastEncoder, texts: Sequence[str], escape: bool = False) -> list[list[int]]:
    backend = tokenizers.Tokenizer.from_str(encoder.reference.json_text)
    backend.encode_special_tokens = escape
    return [list(e.ids) for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def differing(encoder: FastEncoder, texts: Sequence[str], escape: bool = False) -> list[str]:
    """The texts whose ids aren't the reference's, encoded as one batch."""
    ids, offsets = encoder.encode_batch(texts)
    assert ids.dtype == np.uint32 and offsets.dtype == np.int64 and len(offsets) == len(texts) + 1 and offsets[-1] == len(ids)
    expected = expected_ids(encoder, texts, escape)
    return [text for i, text in enumerate(texts) if ids[offsets[i] : offsets[i + 1]].tolist() != expected[i]]


def split_tokenizers() -> dict[str, Any]:
    """The pre-tokenizers that `proof` knows."""
    from open_lm.fast_tokenizer.proof import _GPT4_SPLIT, _QWEN2_SPLIT

    def split(regex: str) -> pre_tokenizers.PreTokenizer:
        isolated = pre_tokenizers.Split(tokenizers.Regex(regex), "isolated", False)
        return pre_tokenizers.Sequence([isolated, byte_level(use_regex=False)])

    return {"gpt2": byte_level(), "gpt4": split(_GPT4_SPLIT), "qwen2": split(_QWEN2_SPLIT)}
