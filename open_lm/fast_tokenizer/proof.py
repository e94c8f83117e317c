"""Which tokenizers gigatoken is known to treat exactly as `tokenizers` does, by their configuration. Pure.

gigatoken 0.10 refuses many kinds of tokenizers, and treats some others wrongly without a word: `unproven` finds those. What it lets pass
is tested in tests/fast_tokenizer with every character and many texts.
"""

from __future__ import annotations

import random
from typing import Any

_GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # and Llama 3
)
_QWEN2_SPLIT = _GPT4_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_PREPEND = {"type": "Prepend", "prepend": "\u2581"}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
_SENTENCEPIECE = (None, _REPLACE, {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]})
_NOT_SETTLED = frozenset("K;`")  # the normal forms of other characters
_COMPOSES = frozenset("<=>")


def unproven(config: dict[str, Any]) -> str:
    """Why equal ids are not certain for a tokenizer.json, "" when they are."""
    model = config["model"]
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its model has not been compared with that of tokenizers"
    if model.get("byte_fallback"):
        splits = config.get("pre_tokenizer")
        known = splits is None or (splits.get("type") == "Metaspace" and splits.get("replacement") == "\u2581")
        if config.get("normalizer") not in _SENTENCEPIECE or not known:
            return "its normaliser and pre-tokenizer have not been compared with those of tokenizers"
    else:
        unknown = sorted(normalizers(config.get("normalizer")) - {"NFC"})
        if unknown:
            return f"its normaliser {', '.join(unknown)} has not been compared with that of tokenizers"
        if not _known_split(config.get("pre_tokenizer")):
            return "its pre-tokenizer has not been compared with that of tokenizers"
    return _unproven_tokens(config.get("added_tokens") or [], normalised="NFC" in normalizers(config.get("normalizer")))


def normalizers(config: dict[str, Any] | None) -> set[str]:
    """The types of a normaliser's parts."""
    if config is None:
        return set()
    if config.get("type") == "Sequence":
        return set().union(*(normalizers(part) for part in config.get("normalizers", ())))
    return {str(config.get("type"))}


def is_byte_level(config: dict[str, Any]) -> bool:
    """A proven tokenizer works on bytes, and takes a text as it is: no space is put before it."""
    splits = config.get("pre_tokenizer") or {}
    return not config["model"].get("byte_fallback") and not splits.get("add_prefix_space")


def _known_split(config: dict[str, Any] | None) -> bool:
    if config is None:
        return False
    if config.get("type") == "ByteLevel":
        return bool(config.get("use_regex", True))
    if config.get("type") != "Sequence" or len(config.get("pretokenizers", ())) != 2:
        return False
    split, level = config["pretokenizers"]
    regex = (split.get("pattern") or {}).get("Regex")
    if (
        split.get("type") != "Split"
        or split.get("behavior") != "Isolated"
        or split.get("invert")
        or regex not in (_GPT4_SPLIT, _QWEN2_SPLIT)
    ):
        return False
    return level.get("type") == "ByteLevel" and not level.get("add_prefix_space") and not level.get("use_regex", True)


def _unproven_tokens(tokens: list[dict[str, Any]], normalised: bool) -> str:
    for token in tokens:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            return f"its added token {token['content']!r} takes a word or the space around it"
        if normalised and token.get("normalized") and not _is_settled(token["content"]):
            return f"its added token {token['content']!r} is looked for in normalised text"
    late = [token["content"] for token in tokens if token.get("normalized")]
    early = [token["content"] for token in tokens if not token.get("normalized")]
    if any(_overlap(a, b) for a in late for b in early):
        return "its added tokens overlap"
    return ""


def _is_settled(content: str) -> bool:
    """Stands in a text's normal form exactly where it stands in the text, whatever is around it."""
    return content.isascii() and not _NOT_SETTLED & set(content) and not content[-1:].isalpha() and content[-1:] not in _COMPOSES


def _overlap(a: str, b: str) -> bool:
    """Some text holds both strings with a character in common."""
    return a in b or b in a or any(a[-k:] == b[:k] or b[-k:] == a[:k] for k in range(1, min(len(a), len(b))))


def separator(config: dict[str, Any], eot_token: str) -> bytes | None:
    """The end-of-text token in UTF-8, if it may stand between documents that are encoded in one go, else None.

    It may when it is an added token that is found before anything else is done to the text, and no other added token can have
    characters in common with it: then it is found wherever it stands, and documents on its two sides know nothing of each other.
    """
    tokens = config.get("added_tokens") or []
    own = [token for token in tokens if token["content"] == eot_token]
    others = [token["content"] for token in tokens if token["content"] != eot_token]
    if len(own) != 1 or own[0].get("normalized") or unproven(config) or not is_byte_level(config):
        return None
    if any(_overlap(eot_token, other) for other in others) or any(eot_token[-k:] == eot_token[:k] for k in range(1, len(eot_token))):
        return None
    return eot_token.encode()


_PROBE = (
    "The quick brown fox's 3 dogs;\tit'll\r\n\n  jump   over 12,345.67 fences\u00a0\u2014 \u201cna\u00efve\u201d cafe\u0301  ",
    "\u4f60\u597d\uff0c\u4e16\u754c \u041f\u0440\u0438\u0432\u0435\u0442 ",
    "\u0645\u0631\u062d\u0628\u0627 \u0939\u093f\u0928\u094d\u0926\u0940 ",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u1100\u1161\u11a8 def f(x):\n        return {x**2}",
    "",
    " ",
)
_PARTS = (
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "'s",
    "'LL",
    "a",
    "The",
    " fox",
    "9",
    "2026",
    ".",
    "<|",
    "\u00e9",
    "\u0301",
    "\u4e2d",
    "\ud55c",
)


def probe_texts(config: dict[str, Any]) -> list[str]:
    """A few hundred short texts in which a wrong engine would soon show; added tokens among them."""
    rng = random.Random(0)
    parts = [*_PARTS, *(token["content"] for token in (config.get("added_tokens") or [])[:20])]
    return [*_PROBE, *("".join(rng.choices(parts, k=rng.randint(1, 8))) for _ in range(200))]
