"""Which tokenizer a command uses for a model, and which tokenizers mean the same by their ids."""

from __future__ import annotations

import json
from typing import Any

import pytest

from open_lm import tokenizer as module
from open_lm.params import UserError
from open_lm.tokenizer import DEFAULT_TOKENIZER, Tokenizer, check_match, choose_tokenizer, much_smaller


def words(name: str, count: int = 100, added: tuple[str, ...] = (), **changes: Any) -> Tokenizer:
    """Of words w0, w1, ... and an end of text, its first id."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    vocabulary = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, count)}}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|endoftext|>", *added])
    return Tokenizer(json.dumps({**json.loads(backend.to_str()), **changes}, indent=2), name)


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_tokenizer", words)


def chosen(named: str | None, carried: Any, vocab_size: int, allow: bool = False) -> str:
    return choose_tokenizer(named, carried, vocab_size, allow).name


def test_the_named_one_wins_over_the_carried_one_over_openlms() -> None:
    assert chosen("mine", words("own"), 50_432) == "mine"
    assert chosen(None, words("own"), 50_432) == "own"
    assert chosen(None, None, 50_432) == DEFAULT_TOKENIZER


def test_a_named_one_that_is_not_the_carried_one_is_refused_unless_that_is_meant() -> None:
    with pytest.raises(
        ValueError, match=r"--tokenizer mine: the tokenizer mine \(sha256 \w{12}\) is another one than own \(sha256 \w{12}\)"
    ):
        chosen("mine", words("own", 99), 50_432)
    assert chosen("mine", words("own", 99), 50_432, allow=True) == "mine"


def test_a_model_of_another_vocabulary_needs_a_name() -> None:
    with pytest.raises(ValueError, match=r"--tokenizer: the checkpoint carries none"):
        chosen(None, None, 50_000)


def test_a_tokenizer_may_have_fewer_ids_than_the_model_but_not_more() -> None:
    assert chosen(None, words("own", 100), 100) == "own"
    with pytest.raises(ValueError, match=r"--tokenizer own: has ids up to 100, the model knows 100"):
        chosen(None, words("own", 101), 100)


def test_tokenizers_are_the_same_where_their_ids_mean_the_same() -> None:
    one = words("one")
    padding = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "w1",
    }
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    bytes_of_text = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    same = [words("b", padding=padding, truncation=truncation), words("c", decoder=bytes_of_text), words("d", added=("<|im_start|>",))]
    for other in same:
        assert one.sha256 != other.sha256 and one.means_the_same(other) and other.means_the_same(one)
    different = [words("e", 99), words("f", normalizer={"type": "NFC"}), words("g", pre_tokenizer=None)]
    assert not any(one.means_the_same(other) or other.means_the_same(one) for other in different)
    assert not words("h", added=("<|a|>",)).means_the_same(words("i", added=("<|b|>",)))


def test_merges_in_either_form_are_the_same_tokenizer() -> None:
    model = {"type": "BPE", "vocab": {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]}
    text, pairs = (words("x", model={**model, "merges": merges}) for merges in (["a b"], [["a", "b"]]))
    assert text.sha256 != pairs.sha256 and text.means_the_same(pairs)


def test_every_pair_is_compared_unknown_ones_pass_and_all_lines_come_together() -> None:
    held = [("shards", words("one")), ("none", None), ("more", words("one", 99)), ("again", words("two", 99)), ("last", words("one"))]
    with pytest.raises(UserError) as error:
        check_match(held, allow=False, vocab_size=99)
    assert [line.partition(":")[0] for line in error.value.problems] == ["more", "again", "last", "shards", "last"]
    assert all("--allow-tokenizer-mismatch if you mean it" in line and "sha256" in line for line in error.value.problems)
    assert "is another one than one (sha256" in error.value.problems[1] and "of shards" in error.value.problems[1]
    allowed = check_match(held, allow=True, vocab_size=99)
    assert len(allowed) == 5 and not any("--allow" in line for line in allowed)
    assert check_match([held[0], held[1], held[4]], allow=False, vocab_size=100) == []


def test_padding_is_not_a_vocabulary_that_is_much_too_large() -> None:
    assert not much_smaller(words("own", 50_277), 50_432) and not much_smaller(words("own", 100), 1_024)
    assert much_smaller(words("own", 8_192), 50_432)
