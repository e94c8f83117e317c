"""gigatoken's memory stays bounded, and its ids don't depend on what it met before."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from built import awkward_texts, differing

from open_lm.fast_tokenizer import FastEncoder
from open_lm.fast_tokenizer import engine as module


def random_words(rng: np.random.Generator, size: int) -> str:
    letters = rng.integers(97, 123, size, dtype=np.uint8)
    letters[::10] = 32
    return letters.tobytes().decode()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the growth is measured on Linux only")
def test_new_words_without_end_need_bounded_memory(small: FastEncoder) -> None:
    encoder = FastEncoder(small.reference, store_bytes=8 << 20)
    engine, rng, most = encoder._fast, np.random.default_rng(0), 0
    assert engine is not None
    for _ in range(24):
        text = random_words(rng, 1 << 20)
        encoder.encode_batch([text[i : i + 5000] for i in range(0, len(text), 5000)])
        most = max(most, engine._grown)
    assert 2 <= engine.loads < 24 and most <= 8 << 20
    assert differing(encoder, [random_words(rng, 2000), *awkward_texts(50)]) == []


def test_known_words_need_no_more_memory(small: FastEncoder) -> None:
    encoder = FastEncoder(small.reference, store_bytes=4 << 20)
    texts = ["the quick brown fox " * 2000] * 10
    for _ in range(20):
        encoder.encode_batch(texts)
    assert encoder._fast is not None and encoder._fast.loads <= 2


def test_ids_do_not_depend_on_reloading(small: FastEncoder) -> None:
    encoder = FastEncoder(small.reference, store_bytes=-1)
    assert differing(encoder, awkward_texts(200)) == []
    assert encoder._fast is not None and encoder._fast.loads > 1


def test_where_memory_cannot_be_asked_for_the_text_counts() -> None:
    assert module._growth(before=0, after=0, text_bytes=100, id_bytes=40) == 100
    assert module._growth(before=1000, after=1500, text_bytes=100, id_bytes=40) == 460
    assert module._growth(before=1000, after=900, text_bytes=100, id_bytes=40) == 0
