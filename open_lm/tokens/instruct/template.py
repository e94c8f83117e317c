"""A chat template: found beside a tokenizer or in a file, rendered in transformers' sandbox. No code of a repository is run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from open_lm import storage
from open_lm.storage.hub import from_hub
from open_lm.storage.yaml_json import read_json
from open_lm.tokenizer import TOKENIZER_CONFIG, Tokenizer, text_problem
from open_lm.tokens.instruct.options import OWN_TEMPLATE, PLAIN
from open_lm.tokens.instruct.records import NotUsableError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_JINJA = "chat_template.jinja"


@dataclass(frozen=True)
class ChatTemplate:
    """A template and what it may name besides the messages.

    Args:
        text: Jinja.
        special: bos_token, eos_token and the like.
        date: of `strftime_now`, ISO; None where the template doesn't ask.
    """

    text: str
    special: dict[str, str] = field(default_factory=dict)
    date: str | None = None

    @property
    def marks_generation(self) -> bool:
        """It says itself what the assistant generates."""
        return _GENERATION.search(self.text) is not None

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and characters [start, stop) of each of its generation blocks.

        Args:
            prompt: the assistant's turn is begun at the end.

        Raises:
            NotUsableError: the template does not take it.
        """
        import jinja2
        from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

        if self.date is not None:  # an argument would reach the template as text; the compiled template is kept and used again
            _compile_jinja_template(self.text).globals["strftime_now"] = date.fromisoformat(self.date).strftime
        special: dict[str, Any] = dict(self.special)
        try:
            found: Any = render_jinja_template(  # said to give a text
                conversations=[list(messages)],
                tools=None if tools is None else list(tools),
                chat_template=self.text,
                return_assistant_tokens_mask=self.marks_generation,
                add_generation_prompt=prompt,
                **special,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise NotUsableError(f"the chat template does not take it: {' '.join(str(error).split())}") from None
        texts, spans = found
        if (problem := text_problem(texts[0])) is not None:
            raise NotUsableError(f"as the chat template writes it, it {problem}")
        return str(texts[0]), [(int(a), int(b)) for a, b in spans[0]] if self.marks_generation else []


def find_template(chosen: str, tokenizer: str, loaded: Tokenizer, day: str | None) -> ChatTemplate | None:
    """The template that --chat-template means; None for plain prompts and responses.

    Args:
        chosen: value of --chat-template.
        tokenizer: value of --tokenizer, of which `loaded` came.
        day: value of --template-date.

    Raises:
        ValueError: no such file, no template that Jinja understands, or one that needs a date.
    """
    if chosen == PLAIN:
        return None
    config = _config(tokenizer)
    text = _own_text(tokenizer, config) if chosen == OWN_TEMPLATE else _file_text(chosen)
    if text is None:
        return None
    _check(text, chosen)
    asks = "strftime_now" in text
    if asks and day is None:
        raise ValueError(f"--chat-template {chosen}: asks for today's date; give one with --template-date, such as 2026-01-31")
    special = {name: _token_text(value) for name, value in config.items() if name.endswith("_token") and _token_text(value)}
    return ChatTemplate(text, {"eos_token": loaded.eot_token, **special}, day if asks else None)


def _check(text: str, chosen: str) -> None:
    import jinja2

    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template  # noqa: F401
    except ImportError:
        raise ValueError("--chat-template: the installed transformers renders no chat templates by itself; install a newer one") from None
    try:
        _compile_jinja_template(text)
    except (jinja2.TemplateError, ImportError) as error:
        raise ValueError(f"--chat-template {chosen}: can't be used: {' '.join(str(error).split())}; mend it") from None


def _file_text(path: str) -> str:
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"--chat-template {path}: no such file; give a file with a Jinja template, auto or plain") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--chat-template {path}: can't be read: {error}; give a file with a Jinja template") from None


def _own_text(tokenizer: str, config: dict[str, Any]) -> str | None:
    beside = _beside(tokenizer, _JINJA)
    if beside is not None:
        return beside.decode("utf-8-sig")
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}.get("default")
    return found if isinstance(found, str) else None


def _config(tokenizer: str) -> dict[str, Any]:
    data = _beside(tokenizer, TOKENIZER_CONFIG)
    try:
        values = read_json(data) if data is not None else {}
    except ValueError as error:
        raise ValueError(f"--tokenizer {tokenizer}: its {TOKENIZER_CONFIG}: {error}; mend or remove it") from None
    return values if isinstance(values, dict) else {}


def _beside(tokenizer: str, name: str) -> bytes | None:
    """A file beside a tokenizer.json, on this disk, behind a URL or on the hub; None where there is none."""
    if not storage.is_remote(tokenizer) and not storage.exists(tokenizer):
        return from_hub(tokenizer, name, optional=True) or None
    folder = storage.parent(tokenizer) if tokenizer.endswith(".json") else tokenizer
    try:
        return storage.read_bytes(storage.join(folder, name) if folder else name)
    except FileNotFoundError:
        return None


def _token_text(value: Any) -> str:
    """A special token as tokenizer_config.json has it: a text, or an object with its content."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""
