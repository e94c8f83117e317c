"""A Hugging Face tokenizer by name, folder or file: its end of text, its identity, and whether another one means the same by its ids.

`open_lm.fast_tokenizer` gives the same ids at 50 times the speed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from open_lm import storage
from open_lm.params.fields import UserError
from open_lm.storage.hub import from_hub
from open_lm.storage.yaml_json import half_pair_words, read_json

if TYPE_CHECKING:
    import tokenizers

DEFAULT_TOKENIZER = "EleutherAI/gpt-neox-20b"
DEFAULT_VOCAB_SIZE = 50_432
"""Vocabulary of OpenLM's models, which use the default tokenizer."""
END_OF_TEXT_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
PAD_TOKEN = "<|padding|>"
BEGIN_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|im_start|>")
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
"""Files of a tokenizer's folder, as Hugging Face has them. Beside shards and in a run folder the second is for a chat template only."""
_LARGER, _MANY = 1.25, 1024
"""A vocabulary this many times as large as its tokenizer, and by so many ids, is more than padding."""
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

    `chat_template` (Jinja) is what its conversations are written with, None where it has none; `special` are the tokens that this may name.

    Args:
        json_text: the content of a tokenizer.json.
        name: where it came from, for messages.
        eot_token: the token that ends a document, or its id; default: the first of `END_OF_TEXT_NAMES` in the vocabulary.
        declared: the content of the tokenizer_config.json that came with it; its end of text and padding come before the default.

    Raises:
        ValueError: not a tokenizer.json, or no end-of-text token.
    """

    def __init__(self, json_text: str, name: str, eot_token: str | int | None = None, declared: bytes | str | None = None):
        import tokenizers

        self.json_text, self.name = json_text, name
        try:
            self.backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(json_text)
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"--tokenizer {name}: not a tokenizer.json: {error}") from None
        self.backend.no_truncation()  # a tokenizer.json may carry a length limit, which would lose text in silence
        self.backend.no_padding()
        if isinstance(eot_token, int):
            eot_token = self.backend.id_to_token(eot_token)
        if eot_token and (problem := text_problem(eot_token)) is not None:
            raise ValueError(f"--eot-token: {problem}")
        about = self._read(declared)
        self.special = {name: token for name in about if name.endswith("_token") and (token := self._known(about[name]))}
        template = about.get("chat_template")
        self.chat_template: str | None = template if isinstance(template, str) else None
        eos, pad = self.special.get("eos_token"), self.special.get("pad_token")
        found = (self.backend.token_to_id(t) for t in ((eot_token,) if eot_token else (eos,) if eos else END_OF_TEXT_NAMES))
        eot = next((i for i in found if i is not None), None)
        if eot is None:
            raise ValueError(f"--tokenizer {name}: has no end-of-text token {eot_token or ''}; name one of its tokens with --eot-token")
        self.eot_id: int = eot
        self.eot_token = str(self.backend.id_to_token(eot))
        self.pad_token = pad or (PAD_TOKEN if self.backend.token_to_id(PAD_TOKEN) is not None else None)

    def _read(self, declared: bytes | str | None) -> dict[str, Any]:
        try:
            about = read_json(declared or "{}")
        except ValueError as error:
            raise ValueError(f"--tokenizer {self.name}: its {TOKENIZER_CONFIG}: {error}; mend or remove it") from None
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
        return content_sha256(self.json_text)

    @property
    def identity(self) -> dict[str, Any]:
        """What statistics and run states say of it."""
        about = {"name": self.name, "sha256": self.sha256, "vocab_size": self.vocab_size}
        return {**about, "eot_token": self.eot_token, "eot_id": self.eot_id}

    @property
    def config_json(self) -> str | None:
        """A tokenizer_config.json with the chat template and its special tokens; None without a template."""
        if self.chat_template is None:
            return None
        values = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special, "chat_template": self.chat_template}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def in_checkpoint(self) -> dict[str, Any]:
        """What a weights file holds of it; `from_checkpoint` reads that."""
        about = {"tokenizer_json": self.json_text, "eot_token": self.eot_token, "eot_id": self.eot_id}
        return {**about, **({"tokenizer_config": self.config_json} if self.config_json else {})}

    @classmethod
    def from_checkpoint(cls, about: Mapping[str, Any], path: str) -> Tokenizer | None:
        """From what a weights file says of itself; None where it holds no tokenizer."""
        text, declared = about.get("tokenizer_json"), about.get("tokenizer_config")
        return cls(str(text), path, about.get("eot_token"), None if declared is None else str(declared)) if text else None

    @cached_property
    def _rules(self) -> tuple[str, dict[str, int]]:
        """How it makes ids of text, as JSON, and its added tokens; what `tokenizers` writes, so that the form of the file plays no part."""
        content = json.loads(self.backend.to_str())
        parts = json.dumps([content[name] for name in ("normalizer", "pre_tokenizer", "model")], sort_keys=True)
        return parts, {token["content"]: token["id"] for token in content["added_tokens"]}

    def means_the_same(self, other: Tokenizer) -> bool:
        """The ids that both have mean the same, and texts get the same ids; one may have further added tokens, such as those of chats."""
        if self.sha256 == other.sha256:
            return True
        (rules, added), (others_rules, others_added) = self._rules, other._rules
        both = [{**added, **others_added}, {**others_added, **added}]
        return rules == others_rules and both[0] == both[1] and len(set(both[0].values())) == len(both[0])

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


def content_sha256(json_text: str) -> str:
    """`Tokenizer.sha256` of the content of a tokenizer.json."""
    return hashlib.sha256(json.dumps(json.loads(json_text), sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def load_tokenizer(source: str, eot_token: str | int | None = None) -> Tokenizer:
    """A tokenizer from a tokenizer.json; or from a folder or a Hugging Face name, with the tokenizer_config.json there.

    Raises:
        ValueError: nothing there, with the remedy.
    """
    remote = storage.is_remote(source)
    folder = not source.endswith(".json") if remote else storage.local_path(source).is_dir()
    file, about = storage.join(source, TOKENIZER) if folder else source, storage.join(source, TOKENIZER_CONFIG)
    if remote or storage.local_path(file).is_file():
        declared = storage.read_bytes(about) if folder and storage.exists(about) else None
        return Tokenizer(_checked(storage.read_bytes(file), source), source, eot_token, declared)
    if folder or storage.exists(source) or source.endswith(".json") or source.startswith((".", "/", "~")):
        raise ValueError(f"--tokenizer {source}: no tokenizer.json there; give a file, a folder that holds one, or a Hugging Face name")
    text, declared = _from_hub(source)
    return Tokenizer(text, source, eot_token, declared)


def _checked(data: bytes, source: str) -> str:
    """The text of a tokenizer.json. Raises ValueError where that is no JSON, or has a key twice, of which tokenizers would lose one."""
    try:
        read_json(data)
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"--tokenizer {source}: not a tokenizer.json: {error}") from None


def _from_hub(name: str) -> tuple[str, bytes]:
    """The tokenizer.json of a hub tokenizer, and its tokenizer_config.json, b"" where it has none."""
    import tokenizers

    try:
        text = tokenizers.Tokenizer.from_buffer(from_hub(name, TOKENIZER)).to_str()
        return text, from_hub(name, TOKENIZER_CONFIG, optional=True)
    except Exception as error:  # tokenizers raises plain Exception for a file that is none
        raise ValueError(
            f"--tokenizer {name}: {' '.join(str(error).split())[:300]}; check the name, give a tokenizer.json or a folder that holds one, "
            "or set HF_ENDPOINT to a mirror"
        ) from None


Holder = tuple[str, Tokenizer | None]
"""What has ids (an option with its value, or a checkpoint), and the tokenizer that is known to have made them."""


def check_match(holders: Sequence[Holder], allow: bool, vocab_size: int | None = None) -> list[str]:
    """The one comparison of tokenizers: all pairs of holders, and each with the ids that the model knows. Unknown tokenizers pass.

    Args:
        allow: --allow-tokenizer-mismatch.
        vocab_size: of the model.

    Returns:
        What does not fit, in words, where that is allowed.

    Raises:
        UserError: where it isn't, with every line.
    """
    known = [(label, tokenizer) for label, tokenizer in holders if tokenizer is not None]
    different, larger = [], []
    for at, (label, tokenizer) in enumerate(known):
        shown = f"{label}: the tokenizer {_shown(tokenizer)}"
        other = next((one for one in known[:at] if not tokenizer.means_the_same(one[1])), None)
        if other is not None:
            different.append(f"{shown} is another one than {_shown(other[1])} of {other[0]}, so that equal ids mean different text")
        if vocab_size is not None and tokenizer.vocab_size > vocab_size:
            larger.append(f"{shown} has ids up to {tokenizer.vocab_size - 1}, the model knows {vocab_size}")
    if allow:
        return list(dict.fromkeys(different + larger))
    remedy = "or --allow-tokenizer-mismatch if you mean it"
    lines = [f"{line}; give what was made with one tokenizer, {remedy}" for line in different]
    lines += [f"{line}; give a model with a larger vocab_size, the tokenizer that belongs to the model, {remedy}" for line in larger]
    if lines:
        raise UserError(list(dict.fromkeys(lines)))
    return []


def _shown(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.name} (sha256 {tokenizer.sha256[:12]})"


def about_holders(holders: Sequence[Holder]) -> list[str]:
    """Which tokenizer is known, and of whom none is: a line for the log, none where nothing has ids."""
    known = next((tokenizer for _, tokenizer in holders if tokenizer), None)
    unknown = list(dict.fromkeys(label for label, tokenizer in holders if tokenizer is None))
    if known is None and not unknown:
        return []
    first = f"Tokenizer: {_shown(known)}, {known.vocab_size} ids" if known else "Tokenizer: not known"
    more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
    return [f"{first}; {', '.join(unknown[:4])}{more} carry none, so that nothing compares their ids" if unknown else first]


def much_smaller(tokenizer: Tokenizer, vocab_size: int) -> bool:
    """Whether a model's vocabulary is larger than the tokenizer's by more than padding."""
    return vocab_size > _LARGER * tokenizer.vocab_size and vocab_size - tokenizer.vocab_size >= _MANY


def choose_tokenizer(named: str | None, carried: Tokenizer | None, vocab_size: int, allow_mismatch: bool = False) -> Tokenizer:
    """The tokenizer for a model: the named one, else the one its checkpoint carries, else OpenLM's default for its vocabulary.

    Args:
        named: value of --tokenizer.
        carried: from the checkpoint.
        vocab_size: ids that the model knows.
        allow_mismatch: the named one may be another one than the carried.

    Raises:
        ValueError: none of them, one with ids that the model doesn't know, or two that differ.
    """
    if named is not None:
        tokenizer = load_tokenizer(named)
        check_match([("the model", carried), (f"--tokenizer {named}", tokenizer)], allow_mismatch)
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
