"""A Hugging Face tokenizer by name, folder or file; its end of text and its hash.

`Tokenizer.encode_batch` is the reference; `FastEncoder` gives the same ids through gigatoken at 50 times the speed and can
check itself against the reference.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from open_lm import storage

if TYPE_CHECKING:
    import tokenizers

DEFAULT_TOKENIZER = "EleutherAI/gpt-neox-20b"
DEFAULT_VOCAB_SIZE = 50_432
"""Vocabulary of OpenLM's models, which use the default tokenizer."""
END_OF_TEXT_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
Engine = Literal["auto", "gigatoken", "hf"]


class Tokenizer:
    """Text to ids and back.

    Args:
        json_text: the content of a tokenizer.json.
        name: where it came from, for messages.
        eot_token: the token that ends a document; default: the first of `END_OF_TEXT_NAMES` in the vocabulary.

    Raises:
        ValueError: not a tokenizer.json, or no end-of-text token.
    """

    def __init__(self, json_text: str, name: str, eot_token: str | None = None):
        import tokenizers

        self.json_text, self.name = json_text, name
        try:
            self.backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(json_text)
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"--tokenizer {name}: not a tokenizer.json: {error}") from None
        self.backend.no_truncation()  # a tokenizer.json may carry a length limit, which would lose text in silence
        self.backend.no_padding()
        found = (self.backend.token_to_id(t) for t in ((eot_token,) if eot_token else END_OF_TEXT_NAMES))
        eot = next((i for i in found if i is not None), None)
        if eot is None:
            raise ValueError(f"--tokenizer {name}: has no end-of-text token {eot_token or ''}; name one of its tokens with --eot-token")
        self.eot_id: int = eot
        self.eot_token = str(self.backend.id_to_token(eot))

    @cached_property
    def sha256(self) -> str:
        """Hash of the tokenizer's content, whatever its layout in the file."""
        content = json.dumps(json.loads(self.json_text), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return int(max(self.backend.get_vocab(with_added_tokens=True).values())) + 1

    def token_id(self, token: str) -> int | None:
        """Id of a token's exact string, None where the vocabulary lacks it."""
        return self.backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = False) -> list[list[int]]:
        """Ids of many texts; nothing added, or what the tokenizer puts around a text (a begin of sequence, say) when asked."""
        return [list(e.ids) for e in self.backend.encode_batch(list(texts), add_special_tokens=special_tokens)]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        """Text of ids; special tokens are shown unless skipped."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))


def load_tokenizer(source: str, eot_token: str | None = None) -> Tokenizer:
    """A tokenizer from a tokenizer.json, a folder that holds one, or a Hugging Face name.

    Raises:
        ValueError: nothing there, with the remedy.
    """
    if storage.is_remote(source):
        url = source if source.endswith(".json") else storage.join(source, "tokenizer.json")
        return Tokenizer(storage.read_bytes(url).decode("utf-8"), source, eot_token)
    path = storage.local_path(source)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        return Tokenizer(file.read_text(encoding="utf-8"), source, eot_token)
    if path.exists() or source.endswith(".json") or source.startswith((".", "/", "~")):
        raise ValueError(f"--tokenizer {source}: no tokenizer.json there; give a file, a folder that holds one, or a Hugging Face name")
    return Tokenizer(_from_hub(source), source, eot_token or _hub_eos(source))


def _from_hub(name: str) -> str:
    import tokenizers

    try:
        return str(tokenizers.Tokenizer.from_pretrained(name).to_str())
    except Exception as error:  # tokenizers raises plain Exception for every failure
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--tokenizer {name}: can't be fetched from the Hugging Face hub ({reason}); "
            "check the name and the network, or give a tokenizer.json"
        ) from None


def _hub_eos(name: str) -> str | None:
    """The end-of-text token that a hub tokenizer declares, None where it declares none."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = huggingface_hub.hf_hub_download(name, "tokenizer_config.json")
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    eos: Any = json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token")
    return eos.get("content") if isinstance(eos, dict) else eos


def choose_tokenizer(named: str | None, carried: Tokenizer | None, vocab_size: int) -> Tokenizer:
    """The tokenizer for a model: the named one, else the one its checkpoint carries, else OpenLM's default for its vocabulary.

    Args:
        named: value of --tokenizer.
        carried: from the checkpoint.
        vocab_size: ids that the model knows.

    Raises:
        ValueError: none of them, or one with ids that the model doesn't know.
    """
    if named is not None:
        tokenizer = load_tokenizer(named)
    elif carried is not None:
        tokenizer = carried
    elif vocab_size == DEFAULT_VOCAB_SIZE:
        tokenizer = load_tokenizer(DEFAULT_TOKENIZER)
    else:
        raise ValueError("--tokenizer: the checkpoint carries none; give a tokenizer.json, a folder that holds one, or a Hugging Face name")
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"--tokenizer {tokenizer.name}: has ids up to {tokenizer.vocab_size - 1}, the model knows {vocab_size}; "
            "give the one it was trained with"
        )
    return tokenizer


# `tokenizers` normalises by Unicode 9, gigatoken by a newer one. Texts with these characters, marks and letters that combine since
# Unicode 10, are left to the reference. Found by trying every character beside others; tests/tokens does so again.
_YOUNG_MARKS = re.compile(
    "[\u07fd\u0897-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b\u0d3c\u0eba\u1715\u1abf-\u1aff\u1df6-\u1dfa\ua82c\U000105c0-\U000105ff"
    "\U00010d24-\U00010d27\U00010d69-\U00010d6d\U00010eab\U00010eac\U00010efa-\U00010eff\U00010f46-\U00010f50\U00010f82-\U00010f85"
    "\U00011070\U0001133b\U00011380-\U000113ff\U0001145e\U00011839\U0001183a\U00011930-\U00011943\U000119e0\U00011a34\U00011a47"
    "\U00011a99\U00011d42-\U00011d45\U00011d97\U00011f41\U00011f42\U00016100-\U0001613f\U00016d40-\U00016d7f\U00016ff0\U00016ff1"
    "\U0001e08f\U0001e130-\U0001e136\U0001e2ae\U0001e2ec-\U0001e2ef\U0001e4ec-\U0001e4ef\U0001e5ee\U0001e5ef\U0001e6e3-\U0001e6f5]"
)
_YOUNG_LEAD_BYTES = (b"\xdf\xbd", b"\xe0", b"\xe1", b"\xea", b"\xf0")
_PROVEN_NORMALIZERS = {"NFC", "Sequence", "Prepend", "Replace"}
_PROBE = (
    "The quick brown fox's 3 dogs;\tit'll\r\n\n  jump   over 12,345.67 fences\u00a0\u2014 \u201cna\u00efve\u201d cafe\u0301  ",
    "\u4f60\u597d\uff0c\u4e16\u754c \u041f\u0440\u0438\u0432\u0435\u0442 ",
    "\u0645\u0631\u062d\u0628\u0627 \u0939\u093f\u0928\u094d\u0926\u0940 ",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u1100\u1161\u11a8 def f(x):\n        return {x**2}",
    "",
    " ",
)
_CHECKED_SHARE, _CHECKED_AT_LEAST = 1000, 256


class FastEncoder:
    """Many texts to ids: through gigatoken where it gives the tokenizer's ids, else through `tokenizers`.

    Args:
        tokenizer: the reference.
        engine: `auto` takes gigatoken when it loads the tokenizer, agrees on a few texts, and has been proven to normalise alike;
            `gigatoken` insists on the first two; `hf` takes the reference.

    Raises:
        ValueError: gigatoken was asked for and can't be had.
    """

    def __init__(self, tokenizer: Tokenizer, engine: Engine = "auto"):
        self.reference = tokenizer
        self.reason = ""
        """Why gigatoken is not used, when it was not turned down."""
        self._fast: Any = None
        if engine != "hf":
            self._fast, self.reason = _load_gigatoken(tokenizer, unproven=engine == "gigatoken")
        if engine == "gigatoken" and self._fast is None:
            raise ValueError(f"--tokenizer-engine gigatoken: {self.reason}; use --tokenizer-engine hf")

    @property
    def engine(self) -> Engine:
        """The one in use, gigatoken or hf."""
        return "hf" if self._fast is None else "gigatoken"

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many texts, nothing added, on the calling thread.

        Returns:
            ids uint32 [total], and offsets int64 [texts + 1]: text i has ids[offsets[i]:offsets[i + 1]].
        """
        if self._fast is None:
            return self._encode_reference(texts)
        ids, offsets = _encode_gigatoken(self._fast, texts)
        young = [i for i, text in enumerate(texts) if has_young_marks(text)]
        if not young:
            return ids, offsets
        pieces = [ids[offsets[i] : offsets[i + 1]] for i in range(len(texts))]
        for index in young:
            pieces[index] = self._encode_reference([texts[index]])[0]
        return np.concatenate(pieces), _offsets([len(p) for p in pieces])

    def _encode_reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self.reference.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        pieces = [np.array(e.ids, dtype=np.uint32) for e in encodings]
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint32), _offsets([len(p) for p in pieces])

    def check(self, texts: Sequence[str], ids: np.ndarray, offsets: np.ndarray, seed: int) -> tuple[int, int | None]:
        """Compare a seeded sample of what `encode_batch` gave, at most 0.1 % of its ids or 256, with the reference.

        Texts longer than that are sampled by a piece, encoded anew both ways.

        Returns:
            How many ids were compared, and the index of a text whose ids differ, or None.
        """
        if self._fast is None or not texts:
            return 0, None
        budget = max(int(offsets[-1]) // _CHECKED_SHARE, _CHECKED_AT_LEAST)
        rng, compared = np.random.default_rng(seed), 0
        order = rng.permutation(len(texts))[:64]
        lengths = offsets[order + 1] - offsets[order]
        for index in order[lengths <= budget]:
            ours = ids[offsets[index] : offsets[index + 1]]
            if compared + len(ours) > budget:
                break
            if ours.tolist() != self.reference.encode_batch([texts[index]])[0]:
                return compared, int(index)
            compared += len(ours)
        if compared == 0:
            text = texts[order[0]]
            start = int(rng.integers(0, max(1, len(text) - budget)))
            piece = text[start : start + budget]
            if self.encode_batch([piece])[0].tolist() != self.reference.encode_batch([piece])[0]:
                return 0, int(order[0])
            compared = len(piece)
        return compared, None


def has_young_marks(text: str) -> bool:
    """True for a text whose normal form depends on the version of Unicode, between those of `tokenizers` and gigatoken."""
    if text.isascii():
        return False
    raw = text.encode("utf-8")
    return any(lead in raw for lead in _YOUNG_LEAD_BYTES) and _YOUNG_MARKS.search(text) is not None


def _load_gigatoken(tokenizer: Tokenizer, unproven: bool) -> tuple[Any, str]:
    """(the engine, "") or (None, why not)."""
    unknown = _normalizers(json.loads(tokenizer.json_text).get("normalizer")) - _PROVEN_NORMALIZERS
    if unknown and not unproven:
        return None, f"its normaliser {', '.join(sorted(unknown))} has not been compared with that of tokenizers"
    try:
        import gigatoken

        fast = gigatoken.Tokenizer.from_json(tokenizer.json_text)
        ids, offsets = _encode_gigatoken(fast, _PROBE)
    except Exception as error:  # each unsupported kind of tokenizer raises its own exception
        return None, f"gigatoken does not load it: {' '.join(str(error).split())}"
    expected = tokenizer.encode_batch(_PROBE)
    if [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] != expected:
        return None, "gigatoken gives other ids than tokenizers"
    return fast, ""


def _normalizers(config: dict[str, Any] | None) -> set[str]:
    """The types of a normaliser and its parts."""
    if config is None:
        return set()
    return {str(config.get("type"))}.union(*(_normalizers(part) for part in config.get("normalizers", ())))


def _encode_gigatoken(fast: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    layout = fast.encode_batch(list(texts), parallel=False).layout
    offsets, ids = np.asarray(layout.offsets, dtype=np.int64), np.asarray(layout.content.data, dtype=np.uint32)
    assert offsets[0] == 0 and offsets[-1] == len(ids), "gigatoken gave a view"
    return ids, offsets


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
