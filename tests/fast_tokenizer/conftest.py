"""Encoders that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from built import trained, wrapped
from tokenizers import normalizers

from open_lm.fast_tokenizer import FastEncoder
from open_lm.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def neox(shared: Path) -> FastEncoder:
    """OpenLM's default tokenizer through gigatoken."""
    encoder = FastEncoder(load_tokenizer(str(shared / "data/tokenizers/20B_tokenizer.json")))
    assert encoder.engine == "gigatoken"
    return encoder


@pytest.fixture(scope="session")
def small() -> FastEncoder:
    """A byte-level BPE with NFC through gigatoken."""
    encoder = FastEncoder(wrapped(trained(normalizer=normalizers.NFC())))
    assert encoder.engine == "gigatoken"
    return encoder
