"""gigatoken and tokenizers agree about every character that is not young."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tokenizers
from built import differing, split_tokenizers, trained, wrapped
from gigatoken.gigatoken_rs import pretokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from open_lm.fast_tokenizer import FastEncoder
from open_lm.fast_tokenizer.young import young_characters, young_positions


def byte_of_character() -> dict[str, int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTES = byte_of_character()
CONTEXTS = ["{0}", "a\u0345{0}", "{0}\u0334\u0301", "a\u0315{0}\u0300\u0327", "\u1100{0}\u11a8", "\u0f71{0}\u0f72", "A{0}\u0301"]
SPLIT_CONTEXTS = ["a{0}a", "1{0}1", " {0}'s", ".{0}.", "\n {0}"]


@pytest.fixture(scope="module")
def normal_forms() -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
    """NFC in UTF-8 by gigatoken and by tokenizers: the ids of a vocabulary of bytes are the bytes of the normal form."""
    import gigatoken

    backend = tokenizers.Tokenizer(models.BPE(BYTES, []))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast, normal = gigatoken.Tokenizer.from_json(backend.to_str()), backend.normalizer
    return lambda text: fast.encode(text).astype(np.uint8).tobytes(), lambda text: normal.normalize_str(text).encode()


def old_characters(step: int) -> list[str]:
    young = young_characters()
    return [chr(c) for c in range(1, 0x110000, step) if not 0xD800 <= c < 0xE000 and not young[c]]


def runs(characters: list[str], form: str, size: int = 256) -> Iterator[str]:
    for i in range(0, len(characters), size):
        yield "b\n".join(form.format(c) for c in characters[i : i + size])


def same_normal_form(normal_forms: tuple, characters: list[str]) -> None:
    ours, theirs = normal_forms
    for form in CONTEXTS:
        wrong = [run for run in runs(characters, form) if ours(run) != theirs(run)]
        assert [ascii(line) for run in wrong for line in run.split("\n") if ours(line) != theirs(line)] == [], form


def same_split(characters: list[str]) -> None:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def theirs(text: str) -> list[bytes]:
        return [bytes(BYTES[c] for c in piece) for piece, _ in level.pre_tokenize_str(text)]

    for form in SPLIT_CONTEXTS:
        wrong = [run for run in runs(characters, form) if list(pretokenizer(run.encode())) != theirs(run)]
        assert [ascii(line) for run in wrong for line in run.split("\n") if list(pretokenizer(line.encode())) != theirs(line)] == [], form


def test_many_characters_that_are_not_young_have_the_same_normal_form_and_class(normal_forms: tuple) -> None:
    some = old_characters(61)
    same_normal_form(normal_forms, some)
    same_split(some)


@pytest.mark.slow
def test_every_character_that_is_not_young_has_the_same_normal_form(normal_forms: tuple) -> None:
    same_normal_form(normal_forms, old_characters(1))


@pytest.mark.slow
def test_every_pair_of_neighbours_that_are_not_young_has_the_same_normal_form(normal_forms: tuple) -> None:
    """Marks, and the letters they combine with, stand near each other in a script's block."""
    ours, theirs = normal_forms
    young = young_characters()
    for first, stop in ((0x300, 0x3400), (0xA000, 0xAC00), (0xF900, 0x12000), (0x16000, 0x17000), (0x1BC00, 0x1F000)):
        old = [c for c in range(first, stop) if not young[c]]
        for distance in (*range(-40, 0), *range(41)):
            pairs = [chr(c) + chr(c + distance) for c in old if not young[c + distance]]
            assert [ascii(p) for run in runs(pairs, "{0}") if ours(run) != theirs(run) for p in run.split("\n")] == []


@pytest.mark.slow
def test_every_character_that_is_not_young_is_of_the_same_class() -> None:
    assigned = [c for c in old_characters(1) if ord(c) < 0x40000]
    same_split(assigned)
    same_split(old_characters(97))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt4", "qwen2"])
def test_every_character_gives_the_same_ids_with_other_pre_tokenizers(name: str) -> None:
    encoder = FastEncoder(wrapped(trained(split_tokenizers()[name])))
    assert encoder.engine == "gigatoken"
    characters = [chr(c) for c in range(1, 0x33500) if not 0xD800 <= c < 0xE000]
    assert differing(encoder, list(runs(characters, "'{0}'s\n{0}\n {0}a{0}1{0}", 8))) == []


def test_most_young_characters_do_make_a_difference(normal_forms: tuple) -> None:
    ours, theirs = normal_forms
    for c in (0x8D3, 0x9FE, 0x10F46, 0x1E130, 0x11382, 0x105D2):
        assert any(ours(f.format(chr(c))) != theirs(f.format(chr(c))) for f in ("a\u0345{0}", "{0}\u0307", "{0}\U000113c9")), hex(c)
    for c in (0x88F, 0xC5C, 0xA7CE, 0x323B0, 0x16EA0):
        text = f".{chr(c)}."
        assert len(list(pretokenizer(text.encode()))) != len(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)), hex(
            c
        )


def test_common_text_holds_no_young_characters() -> None:
    for text in ("plain", "“café” e\u0301 한국어 हिन्दी ไทย 中文 😀 🥰 🫠 🩷 עברית العربية Tiếng Việt ქართული ភាសាខ្មែរ", ""):
        assert len(young_positions(text.encode())) == 0


YOUNG = st.sampled_from([chr(c) for c in np.flatnonzero(young_characters())[::7]])


@given(st.lists(st.one_of(YOUNG, st.characters(exclude_categories=["Cs"])), max_size=20))
def test_young_characters_are_found_wherever_they_stand(characters: list[str]) -> None:
    expected, at = [], 0
    for character in characters:
        if young_characters()[ord(character)]:
            expected.append(at)
        at += len(character.encode())
    assert young_positions("".join(characters).encode()).tolist() == expected
