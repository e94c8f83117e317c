"""The tokenizer of a Hugging Face model: the ids of its tokenizer.json, the special tokens that transformers reads beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from open_lm import storage
from open_lm.storage.hub import from_hub, hub_problem
from open_lm.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Declared:
    """What a tokenizer's files say beyond a tokenizer.json; all unknown by default."""

    begin: str | None = None
    """Stands before a text, whether or not the tokenizer puts it there by itself."""
    pad: str | None = None
    clean_up: bool = False
    """Spaces before punctuation are dropped from decoded text, where transformers does so."""


def load_hf_tokenizer(source: str) -> tuple[Tokenizer, Declared]:
    """The tokenizer of a model's name or folder. A model that has none in one file (OPT) gets what transformers makes of its files.

    Raises:
        ValueError: there is none that can be read, with the remedy.
    """
    made, reason = _as_transformers_has_it(source)
    tokenizer, problem = _from_file(source, made)
    if tokenizer is None and hasattr(made, "backend_tokenizer"):
        tokenizer = Tokenizer(made.backend_tokenizer.to_str(), source, made.eos_token)
    if tokenizer is None:
        why = " ".join((reason or problem).split())[:200]
        raise ValueError(
            f"--hf-model {source}: has no tokenizer that can be read ({why}); name one that has a tokenizer.json with --tokenizer"
        )
    if made is None:
        return tokenizer, Declared()
    begin, pad = (token if token and tokenizer.token_id(token) is not None else None for token in (made.bos_token, made.pad_token))
    tokenizer.pad_token = pad or tokenizer.pad_token
    return tokenizer, Declared(begin, pad, bool(made.clean_up_tokenization_spaces))


def _from_file(source: str, made: Any) -> tuple[Tokenizer | None, str]:
    """Its tokenizer.json with the end of text that transformers knows, or else the usual one; or None and why there is none."""
    reason = ""
    for eot in dict.fromkeys((getattr(made, "eos_token", None), None)):
        try:
            return load_tokenizer(source, eot), ""
        except ValueError as error:
            reason = str(error)
    return None, reason


def _as_transformers_has_it(source: str) -> tuple[Any, str]:
    """Its own class for the tokenizer, or None and why there is none; code that comes with it is not run."""
    import transformers

    where = hf_source(source)
    try:
        return transformers.AutoTokenizer.from_pretrained(**where, trust_remote_code=False), ""
    except Exception as error:  # each class fails in its own way over files that it lacks
        return None, str(error)


def hf_source(source: str) -> dict[str, Any]:
    """A folder, or the name of a model on the hub, as transformers takes it. Raises ValueError for a name that isn't there, or can't be
    asked for and isn't cached.
    """
    path = storage.local_path(source)
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(path)}
    try:
        from_hub(source, "config.json")
    except ValueError as error:
        raise ValueError(f"--hf-model {source}: {error}; check the name, give a folder, or set HF_ENDPOINT to a mirror") from None
    return {"pretrained_model_name_or_path": source, "local_files_only": hub_problem() is not None}
