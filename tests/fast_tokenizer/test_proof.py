"""Only tokenizers that gigatoken is known to treat as tokenizers does are given to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from built import awkward_texts, byte_level, differing, trained, wrapped
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from open_lm.fast_tokenizer import FastEncoder
from open_lm.fast_tokenizer.proof import _GPT4_SPLIT, _QWEN2_SPLIT, separator, unproven
from open_lm.tokenizer import Tokenizer


def split(regex: str, behavior: str = "isolated", **options: Any) -> pre_tokenizers.PreTokenizer:
    level = byte_level(**{"use_regex": False, **options})
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), behavior, False), level])


def sentencepiece(normalizer: Any, pre_tokenizer: Any) -> Backend:
    special = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    backend = trained(pre_tokenizer or byte_level(), normalizer, models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True), special)
    config = json.loads(backend.to_str())
    config["pre_tokenizer"] = json.loads(pre_tokenizer.__getstate__()) if pre_tokenizer else None
    return Backend.from_str(json.dumps(config))


def llama2() -> Any:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


PROVEN = {
    "byte-level": lambda: trained(),
    "nfc": lambda: trained(normalizer=normalizers.NFC()),
    "sequence of nfc": lambda: trained(normalizer=normalizers.Sequence([normalizers.NFC()])),
    "prefix space": lambda: trained(byte_level(add_prefix_space=True)),
    "gpt-4 and llama 3": lambda: trained(split(_GPT4_SPLIT)),
    "qwen 2": lambda: trained(split(_QWEN2_SPLIT), normalizers.NFC()),
    "llama 2": lambda: sentencepiece(llama2(), None),
    "gemma": lambda: sentencepiece(normalizers.Replace(" ", "▁"), None),
    "metaspace": lambda: sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
}
UNPROVEN = {
    "nfkc": lambda: trained(normalizer=normalizers.NFKC()),
    "nfd": lambda: trained(normalizer=normalizers.NFD()),
    "lower case": lambda: trained(normalizer=normalizers.Lowercase()),
    "nfc, lower case": lambda: trained(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "bert": lambda: trained(normalizer=normalizers.BertNormalizer()),
    "replace": lambda: trained(normalizer=normalizers.Replace("a", "b")),
    "no regex": lambda: trained(byte_level(use_regex=False)),
    "digits": lambda: trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(), byte_level()])),
    "punctuation": lambda: trained(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), byte_level()])),
    "split, removed": lambda: trained(split(_GPT4_SPLIT, "removed")),
    "split, prefix space": lambda: trained(split(_GPT4_SPLIT, add_prefix_space=True)),
    "another split": lambda: trained(split(r"\p{L}+|\p{N}{1,2}|\s+|[^\s\p{L}\p{N}]+")),
    "nfkc llama 2": lambda: sentencepiece(normalizers.Sequence([normalizers.NFKC(), llama2()]), None),
    "white space": lambda: trained(pre_tokenizers.Whitespace()),
}


@pytest.mark.parametrize("name", PROVEN)
def test_proven_tokenizers_use_gigatoken_and_have_the_same_ids(name: str) -> None:
    tokenizer = wrapped(PROVEN[name]())
    encoder = FastEncoder(tokenizer)
    assert (encoder.engine, encoder.reason) == ("gigatoken", "")
    assert differing(encoder, awkward_texts(800)) == []
    escaping = FastEncoder(tokenizer, escape_special=True)
    assert differing(escaping, awkward_texts(250, seed=3), escape=True) == []


@pytest.mark.parametrize("name", UNPROVEN)
def test_unproven_tokenizers_use_the_reference_and_say_why(name: str) -> None:
    encoder = FastEncoder(wrapped(UNPROVEN[name]()))
    assert encoder.engine == "hf" and "compared with" in encoder.reason
    texts = awkward_texts(100)
    assert differing(encoder, texts) == []
    assert encoder.check(texts, *encoder.encode_batch(texts), seed=0) == (0, None)


FLAGS: list[dict[str, Any]] = [{"single_word": True}, {"lstrip": True}, {"rstrip": True}, {"special": True, "rstrip": True}]


def with_token(content: str, normalizer: Any, **flags: Any) -> FastEncoder:
    backend = trained(normalizer=normalizer)
    (backend.add_special_tokens if flags.get("special") else backend.add_tokens)([AddedToken(content, **flags)])
    return FastEncoder(wrapped(backend))


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
@pytest.mark.parametrize("flags", [*FLAGS, {}, {"normalized": True}, {"normalized": False}, {"special": True}])
@pytest.mark.parametrize("content", ["foo", "é", "<foo>", " ", "foo."])
def test_added_tokens_of_any_kind_give_the_same_ids(content: str, flags: dict[str, Any], normalizer: Any) -> None:
    encoder = with_token(content, normalizer, **flags)
    if flags in FLAGS:
        assert encoder.engine == "hf" and "word or the space around it" in encoder.reason
    elif normalizer is None or "special" in flags or flags.get("normalized") is False:
        assert encoder.engine == "gigatoken"
    assert differing(encoder, awkward_texts(300)) == []


def test_added_tokens_that_normal_forms_can_touch_are_left_to_the_reference() -> None:
    for content in ("<foo>", "foo", "é", "Kelvin."):
        assert "normalised text" in with_token(content, normalizers.NFC(), normalized=True).reason
    for content in ("  ", "foo.", "[x]"):
        assert with_token(content, normalizers.NFC(), normalized=True).engine == "gigatoken"


def test_added_tokens_that_overlap_before_and_after_normalisation_are_left_to_the_reference() -> None:
    backend = trained()
    backend.add_tokens([AddedToken("foo", normalized=True), AddedToken("ob", normalized=False)])
    encoder = FastEncoder(wrapped(backend))
    assert "overlap" in encoder.reason and differing(encoder, ["foobar", "fob", "foo"]) == []


def test_documents_are_joined_only_by_an_end_of_text_that_nothing_can_touch() -> None:
    def joint(*tokens: AddedToken, eot: str = "<|endoftext|>") -> bytes | None:
        backend = trained()
        backend.add_tokens(list(tokens))
        return separator(json.loads(backend.to_str()), eot)

    assert joint() == joint(AddedToken("<|padding|>"), AddedToken("  ")) == b"<|endoftext|>"
    assert joint(AddedToken("x<|", normalized=False)) is None
    assert joint(AddedToken("<|endoftext|>\n", normalized=False)) is None
    assert joint(AddedToken("aba", normalized=False), eot="aba") is None
    assert joint(eot="the") is None


@pytest.mark.parametrize("token", ["x<|", "<|endoftext|>\n", ">the"])
def test_texts_that_touch_the_end_of_text_have_the_same_ids(token: str) -> None:
    backend = trained()
    backend.add_tokens([AddedToken(token, normalized=False)])
    encoder = FastEncoder(wrapped(backend))
    assert differing(encoder, ["x", "x<|", "\n", "a", "", "the", "<|endoftext|>\n", "<|endoftext|>", "\nthe", "<|endoftext|>the"]) == []


def test_any_token_may_end_documents() -> None:
    tokenizer = Tokenizer(trained().to_str(), "built", eot_token="the")
    encoder = FastEncoder(tokenizer)
    assert encoder.engine == "gigatoken" and differing(encoder, ["the", "the the", "", "quick the"]) == []


def test_an_unsupported_model_uses_the_reference_and_says_why() -> None:
    tokenizer = Tokenizer(Backend(models.Unigram([("a", -1.0), ("b", -1.5), ("<eos>", -2.0)])).to_str(), "unigram")
    encoder = FastEncoder(tokenizer)
    assert encoder.engine == "hf" and "model" in encoder.reason
    assert differing(encoder, ["ab", "", "ba"]) == []
    with pytest.raises(ValueError, match=r"--tokenizer-engine gigatoken: .*use --tokenizer-engine hf"):
        FastEncoder(tokenizer, "gigatoken")


def test_gigatoken_is_used_on_demand_unless_it_is_seen_to_differ() -> None:
    prefix = wrapped(with_token("zebra", None, rstrip=True).reference.backend)
    assert FastEncoder(prefix).engine == "hf" and FastEncoder(prefix, "gigatoken").engine == "gigatoken"
    with pytest.raises(ValueError, match="gives other ids than tokenizers"):
        FastEncoder(wrapped(trained(byte_level(use_regex=False))), "gigatoken")


def test_a_model_with_dropout_is_unproven() -> None:
    config = json.loads(trained().to_str())
    assert unproven(config) == ""
    config["model"]["dropout"] = 0.1
    assert "model" in unproven(config)
