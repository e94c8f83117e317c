"""gigatoken gives the ids of tokenizers, or is not used."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from open_lm.tokenizer import FastEncoder, Tokenizer, has_young_marks, load_tokenizer
from open_lm.tokens.inputs import Part, input_file
from open_lm.tokens.read import Reader


def differing(encoder: FastEncoder, texts: list[str]) -> list[int]:
    """Indices of the texts whose ids aren't the reference's."""
    ids, offsets = encoder.encode_batch(texts)
    assert ids.dtype == np.uint32 and offsets.dtype == np.int64 and len(offsets) == len(texts) + 1
    expected = encoder.reference.encode_batch(texts)
    return [i for i, ids_of_text in enumerate(expected) if ids[offsets[i] : offsets[i + 1]].tolist() != ids_of_text]


@pytest.fixture(scope="module")
def neox(shared: Path) -> FastEncoder:
    encoder = FastEncoder(load_tokenizer(str(shared / "data/tokenizers/20B_tokenizer.json")))
    assert encoder.engine == "gigatoken"
    return encoder


def shared_texts(path: Path, most: int) -> list[str]:
    with Reader("text") as reader:
        return [d.text for d in reader.documents(Part(input_file(str(path))))][:most]


@pytest.mark.parametrize("name", ["wild/code.jsonl.zst", "wild/blns.txt.zst", "text/us_speeches.jsonl.zst", "text/python_peps.jsonl.zst"])
def test_real_documents_have_the_same_ids(neox: FastEncoder, shared: Path, name: str) -> None:
    texts = shared_texts(shared / "data" / name, 60)
    if name.endswith("txt.zst"):
        texts += texts[0].split("\n")
    assert differing(neox, texts) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wild/udhr_all_languages.jsonl.zst", "wild/code.jsonl.zst"])
def test_documents_in_the_wild_have_the_same_ids(neox: FastEncoder, shared: Path, name: str) -> None:
    assert differing(neox, shared_texts(shared / "data" / name, 10_000)[::3]) == []


AWKWARD = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2028", "\u3000", "\u200d", "'", "'s", "'LL", "a", "Z", "1", "23", "\u0301", "\u0327"]
AWKWARD += [
    "\uac00",
    "\u1100",
    "\u1161",
    "é",
    "ſ",
    "中",
    "😀",
    "<|endoftext|>",
    "<|padding|>",
    "<|",
    "|>",
    "endoftext",
    "\x00",
    "\x85",
    "\ufeff",
]
AWKWARD += ["\u0344", "\u2126", "\u0f71", "\u0f80", "か", "\u3099", "्", "\u08d3", "\u0eba", "\u1abf", "\U0001e130", "\U00011930", " " * 28]


def test_special_tokens_spaces_and_marks_in_any_order_have_the_same_ids(neox: FastEncoder) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(AWKWARD, k=rng.randint(0, 12))) for _ in range(4000)]
    assert differing(neox, texts) == []
    assert neox.encode_batch(["a<|endoftext|>"])[0][-1] == neox.reference.eot_id


@pytest.mark.slow
def test_every_character_beside_marks_has_the_same_ids_or_is_left_to_the_reference(neox: FastEncoder) -> None:
    blocks = [(1, 0x3400), (0xA000, 0xAC00), (0xF900, 0x12000), (0x16000, 0x17000), (0x1BC00, 0x20000)]  # the others hold no marks
    characters = [chr(c) for first, end in blocks for c in range(first, end)]
    for around in ("a\u0345{0}", "{0}\u0334\u0301"):
        assert [hex(ord(characters[i])) for i in differing(neox, [around.format(c) for c in characters])] == []
    some = characters[::4]
    neighbours = ["".join(c + chr(n) for n in range(max(1, ord(c) - 8), ord(c) + 9)) for c in some]
    assert [hex(ord(some[i])) for i in differing(neox, neighbours)] == []


def test_only_texts_with_young_marks_are_left_to_the_reference() -> None:
    assert has_young_marks("a\u08d3") and has_young_marks("\U0001e130")
    assert not has_young_marks("plain") and not has_young_marks("“café” e\u0301 한국어 हिन्दी ไทย 😀")


def test_an_unsupported_tokenizer_uses_the_reference_and_says_why() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    tokenizer = Tokenizer(Backend(models.Unigram([("a", -1.0), ("b", -1.5), ("<eos>", -2.0)])).to_str(), "unigram")
    encoder = FastEncoder(tokenizer)
    assert encoder.engine == "hf" and "Unigram" in encoder.reason
    assert differing(encoder, ["ab", "", "ba"]) == []
    with pytest.raises(ValueError, match=r"--tokenizer-engine gigatoken: .*use --tokenizer-engine hf"):
        FastEncoder(tokenizer, "gigatoken")


def test_a_normaliser_that_was_never_compared_uses_the_reference(tokenizer_file: Path) -> None:
    config = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    config["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}
    encoder = FastEncoder(Tokenizer(json.dumps(config), "nfkc"))
    assert encoder.engine == "hf" and "NFKC" in encoder.reason


def test_a_length_limit_in_the_tokenizer_cuts_nothing_off(tokenizer_file: Path) -> None:
    config = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    config["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    config["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    limited, free = Tokenizer(json.dumps(config), "limited"), load_tokenizer(str(tokenizer_file))
    texts = ["a", "the quick brown fox jumps over"]
    assert limited.encode_batch(texts) == free.encode_batch(texts)
    assert differing(FastEncoder(limited, "hf"), texts) == differing(FastEncoder(limited), texts) == []


@pytest.mark.parametrize("words", [3, 4000])
def test_the_check_finds_a_difference_in_short_and_long_documents(tokenizer_file: Path, words: int) -> None:
    encoder = FastEncoder(load_tokenizer(str(tokenizer_file)))
    texts = ["fox " * words]
    ids, offsets = encoder.encode_batch(texts)
    checked, wrong = encoder.check(texts, ids, offsets, seed=0)
    assert 0 < checked <= max(256, len(ids) // 1000) and wrong is None
    encoder._fast = FastEncoder(other_tokenizer())._fast
    ids, offsets = encoder.encode_batch(texts)
    assert encoder.check(texts, ids, offsets, seed=0)[1] == 0


def other_tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({"<|endoftext|>": 0, **{c: 300 - i for i, c in enumerate(alphabet)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(backend.to_str(), "other")
