"""A FastEncoder gives the ids of tokenizers for whatever text, alone or among others."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from built import AWKWARD, awkward_texts, differing, expected_ids, trained, wrapped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from open_lm.fast_tokenizer import FastEncoder
from open_lm.fast_tokenizer import encoder as module
from open_lm.tokens.reading.inputs import Part, input_file
from open_lm.tokens.reading.reader import Reader


def shared_texts(path: Path) -> list[str]:
    with Reader("text") as reader:
        return [text for batch in reader.batches(Part(input_file(str(path)))) for text in batch.texts]


@pytest.mark.parametrize("name", ["wild/code.jsonl.zst", "wild/blns.txt.zst", "text/us_speeches.jsonl.zst", "text/python_peps.jsonl.zst"])
def test_real_documents_have_the_same_ids(neox: FastEncoder, shared: Path, name: str) -> None:
    texts = shared_texts(shared / "data" / name)[:25]
    if name.endswith("txt.zst"):
        texts += texts[0].split("\n")
    assert differing(neox, texts) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["udhr_all_languages", "code"])
def test_all_documents_in_the_wild_have_the_same_ids(neox: FastEncoder, shared: Path, name: str) -> None:
    assert differing(neox, shared_texts(shared / "data/wild" / f"{name}.jsonl.zst")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["novels", "openstax", "python_peps", "tinyshakespeare", "us_speeches"])
def test_all_of_the_shared_texts_have_the_same_ids(neox: FastEncoder, shared: Path, name: str) -> None:
    texts = shared_texts(shared / "data/text" / f"{name}.jsonl.zst")
    assert differing(neox, [text[i : i + 20_000] for text in texts for i in range(0, len(text), 20_000)]) == []


PIECES = st.one_of(
    st.sampled_from(AWKWARD),
    st.characters(exclude_categories=["Cs"]),
    st.characters(categories=["Mn", "Mc", "Lm"]),
    st.characters(categories=["Cn", "Co", "Cc", "Cf"]),
    st.text(" \t\n\r\x0b\u00a0\u2003\u3000", max_size=6),
    st.text(st.characters(min_codepoint=0x0900, max_codepoint=0x1200), max_size=5),
    st.text(st.characters(min_codepoint=0x10000, max_codepoint=0x1FFFF), max_size=4),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@settings(max_examples=8, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXTS, min_size=25, max_size=25))
def test_made_up_texts_have_the_same_ids(neox: FastEncoder, texts: list[str]) -> None:
    assert differing(neox, texts) == []


@pytest.mark.slow
@settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXTS, min_size=50, max_size=50))
def test_five_thousand_made_up_texts_have_the_same_ids(neox: FastEncoder, texts: list[str]) -> None:
    assert differing(neox, texts) == []


def test_spaces_marks_and_special_tokens_in_any_order_have_the_same_ids(neox: FastEncoder) -> None:
    assert differing(neox, awkward_texts(2500)) == []
    assert neox.encode_batch(["a<|endoftext|>"])[0][-1] == neox.reference.eot_id


def test_escaped_special_tokens_are_ordinary_text(neox: FastEncoder) -> None:
    encoder = FastEncoder(neox.reference, escape_special=True)
    texts = awkward_texts(800, seed=1)
    assert differing(encoder, texts, escape=True) == []
    ids = encoder.encode_batch(["a<|endoftext|><|padding|>"])[0]
    assert not {0, 1} & set(ids.tolist()) and neox.reference.decode(ids) == "a<|endoftext|><|padding|>"
    assert FastEncoder(neox.reference, "hf", escape_special=True).encode_batch(["a<|endoftext|><|padding|>"])[0].tolist() == ids.tolist()
    assert differing(neox, texts) == []  # the shared reference is as it was


def test_escaping_leaves_added_tokens_that_are_not_special_alone() -> None:
    backend = trained(special=["<|endoftext|>"])
    backend.add_tokens(["<foo>"])
    encoder = FastEncoder(wrapped(backend), escape_special=True)
    assert encoder.engine == "gigatoken"
    assert encoder.encode_batch(["<foo>"])[0].tolist() == [backend.token_to_id("<foo>")]
    assert differing(encoder, awkward_texts(500), escape=True) == []


@pytest.mark.parametrize("engine", ["gigatoken", "hf"])
@pytest.mark.parametrize("escape", [False, True])
@pytest.mark.parametrize("bos_id", [None, 5])
def test_documents_are_one_stream_with_begins_and_ends(small: FastEncoder, engine: str, escape: bool, bos_id: int | None) -> None:
    encoder = FastEncoder(small.reference, engine, escape_special=escape)  # type: ignore[arg-type]
    for texts in (awkward_texts(300, seed=2), ["\u0338x"], [""], []):
        documents = encoder.encode_documents(texts, np.uint16, bos_id)
        begin = [] if bos_id is None else [bos_id]
        expected = [[*begin, *ids, encoder.reference.eot_id] for ids in expected_ids(encoder, texts, escape)]
        assert documents.tokens.dtype == np.uint16 and documents.tokens.tolist() == [i for ids in expected for i in ids]
        assert np.diff(documents.offsets).tolist() == [len(ids) for ids in expected] and documents.offsets[0] == 0
        assert encoder.check_documents(texts, documents, 0)[1] is None


def test_long_documents_among_others_have_the_same_ids(small: FastEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONG", 2000)
    monkeypatch.setattr(module, "_SMALL", 100)
    monkeypatch.setattr(module, "_JOINED", 300)
    long = " ".join(["the quick fox\njumps over", "café", "\u08d3 x", "<|endoftext|>", "over lazy dogs"] * 200)
    for escape in (False, True):
        for engine in ("gigatoken", "hf"):
            encoder = FastEncoder(small.reference, engine, escape_special=escape)  # type: ignore[arg-type]
            for texts in ([long], ["a", long, "", long[:2500], "b"], [long, "x", long], ["中" * 5000, "\u08d3" * 3000]):
                assert differing(encoder, texts, escape) == []


def test_little_of_a_long_document_is_left_to_tokenizers(small: FastEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FastEncoder(small.reference)
    referred: list[int] = []
    refer = encoder._refer
    monkeypatch.setattr(encoder, "_refer", lambda texts: referred.extend(map(len, texts)) or refer(texts))
    half = "the quick brown fox jumps " * 20_000
    encoder.encode_batch([half + "\u08d3 " + half])
    assert 0 < sum(referred) < 20_000


@pytest.mark.parametrize("words", [3, 4000])
@pytest.mark.parametrize("count", [1, 30])
def test_the_check_finds_a_difference_in_short_and_long_documents(small: FastEncoder, words: int, count: int) -> None:
    encoder = FastEncoder(small.reference)
    texts = ["fox " * words] * count
    ids, offsets = encoder.encode_batch(texts)
    checked, difference = encoder.check(texts, ids, offsets, seed=0)
    assert 0 < checked <= max(256, len(ids) // 1000) and difference is None
    assert encoder.checking_seconds > 0
    encoder._fast = FastEncoder(wrapped(trained(special=["<|endoftext|>", "x", "y"]))).__dict__["_fast"]
    ids, offsets = encoder.encode_batch(texts)
    _, difference = encoder.check(texts, ids, offsets, seed=0)
    assert difference is not None and difference.text in texts[difference.index]
    assert difference.expected == small.reference.encode(difference.text) != difference.ids
    assert FastEncoder(small.reference, verify=False).check(texts, ids, offsets, seed=0) == (0, None)


def test_the_check_sees_documents_that_were_put_together_wrongly(small: FastEncoder) -> None:
    encoder = FastEncoder(small.reference)
    texts = ["the quick brown fox jumps over the lazy dog " * 200]
    documents = encoder.encode_documents(texts, np.uint16)
    assert encoder.check_documents(texts, documents, 0)[1] is None
    documents.tokens[:-1] = np.roll(documents.tokens[:-1], 1)
    difference = encoder.check_documents(texts, documents, 0)[1]
    assert difference is not None and difference.index == 0


def test_escaped_texts_are_checked_against_the_escaping_reference(small: FastEncoder) -> None:
    encoder = FastEncoder(small.reference, escape_special=True)
    texts = ["<|endoftext|> fox"] * 20
    ids, offsets = encoder.encode_batch(texts)
    checked, difference = encoder.check(texts, ids, offsets, seed=0)
    assert checked > 0 and difference is None


def test_a_tokenizer_that_puts_something_around_texts_adds_nothing(small: FastEncoder) -> None:
    from tokenizers import processors

    backend = trained(special=["<|endoftext|>", "<bos>"])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))])
    encoder = FastEncoder(wrapped(backend))
    assert encoder.engine == "gigatoken" and differing(encoder, awkward_texts(300)) == []


def test_a_length_limit_in_the_tokenizer_cuts_nothing_off() -> None:
    backend, free = trained(normalizer=normalizers.NFC()), trained(normalizer=normalizers.NFC())
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    limited, texts = wrapped(backend), ["a", "the quick brown fox jumps over"]
    expected = wrapped(free).encode_batch(texts)
    for engine in ("hf", "auto"):
        ids, offsets = FastEncoder(limited, engine).encode_batch(texts)  # type: ignore[arg-type]
        assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected


def test_awkward_arrays_are_not_imported(repo: Path) -> None:
    code = """
import sys; sys.path.insert(0, "tests/fast_tokenizer")
from built import *
encoder = FastEncoder(wrapped(trained()))
encoder.check(["fox"], *encoder.encode_batch(["fox"]), 0)
print(encoder.engine, "awkward" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gigatoken", "False"]
