"""A text's pieces give its ids."""

from __future__ import annotations

import random

import pytest
from built import AWKWARD, split_tokenizers, trained
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from open_lm.fast_tokenizer.cuts import may_cut, pieces, tail

PARTS = [*AWKWARD, " the", " fox", "\n", ".\n", "\nThe", " ", "x\n", "中\n中", "да\nнет", "a b", "don't do", "\u0301 x"] * 2 + [
    " fox",
    "\nfox",
    ". It",
] * 20
TEXTS = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


@given(TEXTS, st.integers(1, 60))
def test_pieces_are_the_text(text: str, size: int) -> None:
    found = list(pieces(text, size))
    assert "".join(found) == text and len(found) >= 1
    assert all(len(piece) >= size for piece in found[:-1])


@given(TEXTS, st.integers(0, 60))
def test_a_tail_is_a_short_end_of_the_text(text: str, size: int) -> None:
    assert text.endswith(tail(text, size)) and len(tail(text, size)) <= size


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "qwen2"])
def test_pieces_have_the_ids_of_the_text(name: str) -> None:
    backend = trained(split_tokenizers()[name], normalizers.NFC())
    rng = random.Random(0)
    texts = ["".join(rng.choices(PARTS, k=40)) for _ in range(600)]
    cut = 0
    for text in texts:
        parts = list(pieces(text, rng.randint(1, 20)))
        cut += len(parts) > 1
        assert [i for part in parts for i in backend.encode(part).ids] == backend.encode(text).ids, ascii(parts)
    assert cut > 500


def test_a_text_without_room_for_a_cut_is_one_piece() -> None:
    assert list(pieces("x" * 1000, 10)) == ["x" * 1000] and tail("x" * 1000, 10) == ""


def test_tokenizers_with_added_tokens_across_cuts_are_not_cut() -> None:
    def tokens(*contents: str) -> list[dict]:
        return [{"content": content} for content in contents]

    assert may_cut(tokens("<|endoftext|>", "  ", " x"))
    assert not may_cut(tokens("x y")) and not may_cut(tokens("\n\n")) and AddedToken("x y").content == "x y"
