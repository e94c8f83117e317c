"""A Hugging Face tokenizer by name, folder or file; its end of text and its hash.

`open_lm.fast_tokenizer` gives the same ids at 50 times the speed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from open_lm import storage
from open_lm.storage.yaml_json import half_pair_words, read_json

if TYPE_CHECKING:
    import tokenizers

DEFAULT_TOKENIZER = "EleutherAI/gpt-neox-20b"
DEFAULT_VOCAB_SIZE = 50_432
"""Vocabulary of OpenLM's models, which use the default tokenizer."""
END_OF_TEXT_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
PAD_TOKEN = "<|padding|>"
BEGIN_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|im_start|>")
_ABOUT = "tokenizer_config.json"
Engine = Literal["auto", "gigatoken", "hf"]


def text_problem(text: str) -> str | None:
    """What keeps text from a tokenizer: half a surrogate pair, which is also what a command line makes of bytes that aren't UTF-8."""
    found = re.search("[\ud800-\udfff]", text)
    return half_pair_words(found.start()) if found else None


def _refusal(texts: Sequence[str], error: TypeError) -> Exception:
    """What to raise where tokenizers says no more than that it got no text."""
    problems = (f"text {number} of {len(texts)} {problem}" for number, text in enumerate(texts, 1) if (problem := text_problem(text)))
    return next((ValueError(problem) for problem in problems), error)


class Tokenizer:
    """Text to ids and back.

    Args:
        json_text: the content of a tokenizer.json.
        name: where it came from, for messages.
        eot_token: the token that ends a document; default: the first of `END_OF_TEXT_NAMES` in the vocabulary.
        declared: the content of the tokenizer_config.json that came with it, in bytes; its end of text and padding come before the default.

    Raises:
        ValueError: not a tokenizer.json, or no end-of-text token.
    """

    def __init__(self, json_text: str, name: str, eot_token: str | None = None, declared: bytes | None = None):
        import tokenizers

        self.json_text, self.name = json_text, name
        try:
            self.backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(json_text)
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"--tokenizer {name}: not a tokenizer.json: {error}") from None
        self.backend.no_truncation()  # a tokenizer.json may carry a length limit, which would lose text in silence
        self.backend.no_padding()
        if eot_token and (problem := text_problem(eot_token)) is not None:
            raise ValueError(f"--eot-token: {problem}")
        about = self._read(declared)
        eos, pad = (self._known(about.get(key)) for key in ("eos_token", "pad_token"))
        found = (self.backend.token_to_id(t) for t in ((eot_token,) if eot_token else (eos,) if eos else END_OF_TEXT_NAMES))
        eot = next((i for i in found if i is not None), None)
        if eot is None:
            raise ValueError(f"--tokenizer {name}: has no end-of-text token {eot_token or ''}; name one of its tokens with --eot-token")
        self.eot_id: int = eot
        self.eot_token = str(self.backend.id_to_token(eot))
        self.pad_token = pad or (PAD_TOKEN if self.backend.token_to_id(PAD_TOKEN) is not None else None)

    def _read(self, declared: bytes | None) -> dict[str, Any]:
        try:
            about = read_json(declared or "{}")
        except ValueError as error:
            raise ValueError(f"--tokenizer {self.name}: its {_ABOUT}: {error}; mend or remove it") from None
        return about if isinstance(about, dict) else {}

    def _known(self, token: Any) -> str | None:
        """The text of a token as a tokenizer_config.json has it, None where the vocabulary lacks it."""
        token = token.get("content") if isinstance(token, dict) else token
        return token if isinstance(token, str) and self.backend.token_to_id(token) is not None else None

    @property
    def pad_id(self) -> int:
        """What LLM Foundry would pad with: the padding token, or the end of text where there is none."""
        found = None if self.pad_token is None else self.backend.token_to_id(self.pad_token)
        return self.eot_id if found is None else found

    @cached_property
    def sha256(self) -> str:
        """Hash of the tokenizer's content, whatever its layout in the file."""
        content = json.dumps(json.loads(self.json_text), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def bos_id(self) -> int:
        """The token that begins a sequence: what the tokenizer puts before a text, or the first of `BEGIN_NAMES` that it has.

        Raises:
            ValueError: it has none.
        """
        plain, whole = (self.backend.encode("a", add_special_tokens=added).ids for added in (False, True))
        if len(whole) > len(plain) and whole[0] != plain[0]:
            return int(whole[0])
        found = next((i for i in map(self.backend.token_to_id, BEGIN_NAMES) if i is not None), None)
        if found is None:
            raise ValueError(f"--bos: the tokenizer {self.name} has no begin-of-sequence token; leave the flag out")
        return found

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return int(max(self.backend.get_vocab(with_added_tokens=True).values())) + 1

    def token_id(self, token: str) -> int | None:
        """Id of a token's exact string, None where the vocabulary lacks it."""
        return self.backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        try:
            return list(self.backend.encode(text, add_special_tokens=False).ids)
        except TypeError as error:
            raise _refusal([text], error) from None

    def encode_batch(self, texts: Sequence[str], special_tokens: bool = False) -> list[list[int]]:
        """Ids of many texts; nothing added, or what the tokenizer puts around a text (a begin of sequence, say) when asked."""
        try:
            return [list(e.ids) for e in self.backend.encode_batch(list(texts), add_special_tokens=special_tokens)]
        except TypeError as error:
            raise _refusal(texts, error) from None

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        """Text of ids; special tokens are shown unless skipped."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))


def load_tokenizer(source: str, eot_token: str | None = None) -> Tokenizer:
    """A tokenizer from a tokenizer.json; or from a folder or a Hugging Face name, with the tokenizer_config.json there.

    Raises:
        ValueError: nothing there, with the remedy.
    """
    if storage.is_remote(source):
        url = source if source.endswith(".json") else storage.join(source, "tokenizer.json")
        about = storage.join(source, _ABOUT)
        declared = None if url == source or not storage.exists(about) else storage.read_bytes(about)
        return Tokenizer(_checked(storage.read_bytes(url), source), source, eot_token, declared)
    path = storage.local_path(source)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        beside = path / _ABOUT
        declared = beside.read_bytes() if beside.is_file() else None
        return Tokenizer(_checked(file.read_bytes(), source), source, eot_token, declared)
    if path.exists() or source.endswith(".json") or source.startswith((".", "/", "~")):
        raise ValueError(f"--tokenizer {source}: no tokenizer.json there; give a file, a folder that holds one, or a Hugging Face name")
    return Tokenizer(_from_hub(source), source, eot_token, _declared_on_hub(source))


def _checked(data: bytes, source: str) -> str:
    """The text of a tokenizer.json. Raises ValueError where that is no JSON, or has a key twice, of which tokenizers would lose one."""
    try:
        read_json(data)
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"--tokenizer {source}: not a tokenizer.json: {error}") from None


def _from_hub(name: str) -> str:
    import tokenizers

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every retry is a line or two; ours says what it came to
    try:
        return str(tokenizers.Tokenizer.from_pretrained(name).to_str())
    except Exception as error:  # tokenizers raises plain Exception for every failure
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--tokenizer {name}: can't be fetched from the Hugging Face hub ({reason}); "
            "check the name and the network, or give a tokenizer.json"
        ) from None


def _declared_on_hub(name: str) -> bytes | None:
    """The tokenizer_config.json of a hub tokenizer, None where it has none."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = huggingface_hub.hf_hub_download(name, _ABOUT)
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    return Path(path).read_bytes()


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
