"""A tiny tokenizer and a tiny model for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads only cost time on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of about 300 ids in which " a" is one token."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["what a day, a cat and a dog saw a hat on a mat\n"] * 20, trainer)
    return Tokenizer(backend.to_str(), "tiny")


@pytest.fixture(scope="session")
def model() -> Transformer:
    """Two layers over 300 ids, random weights."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(hidden_dim=32, n_layers=2, n_heads=2, seq_len=64, vocab_size=300))
    model.init_weights()
    with torch.no_grad():
        model.output.weight.mul_(8)  # losses far from ln(vocab), so that tests can tell ids apart
    return model.eval()
