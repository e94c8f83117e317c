"""Which tokenizer a command uses for a model: the named one, the checkpoint's own, OpenLM's for its vocabulary, or an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from open_lm import tokenizer as module
from open_lm.tokenizer import DEFAULT_TOKENIZER, choose_tokenizer


@dataclass
class Named:
    name: str
    vocab_size: int = 100


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_tokenizer", Named)


def chosen(named: str | None, carried: Any, vocab_size: int) -> str:
    return choose_tokenizer(named, carried, vocab_size).name


def test_the_named_one_wins_over_the_carried_one_over_openlms() -> None:
    assert chosen("mine", Named("own"), 50_432) == "mine"
    assert chosen(None, Named("own"), 50_432) == "own"
    assert chosen(None, None, 50_432) == DEFAULT_TOKENIZER


def test_a_model_of_another_vocabulary_needs_a_name() -> None:
    with pytest.raises(ValueError, match=r"--tokenizer: the checkpoint carries none"):
        chosen(None, None, 50_000)


def test_a_tokenizer_may_have_fewer_ids_than_the_model_but_not_more() -> None:
    assert chosen(None, Named("own", 100), 100) == "own"
    with pytest.raises(ValueError, match=r"--tokenizer own: has ids up to 100, the model knows 100"):
        chosen(None, Named("own", 101), 100)
