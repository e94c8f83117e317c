"""A line of a file to a conversation, or to a prompt with its response. Pure.

Conversations: `{"messages": [{"role", "content"}, ...], "tools"?}`, `{"conversations": [{"from", "value"}, ...]}`. Pairs:
`{"prompt", "response"}`, `{"prompt", "completion"}`, `{"instruction", "input"?, "output"}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from open_lm.storage.yaml_json import parse_line

ASSISTANT = "assistant"
_SPEAKERS = {"human": "user", "gpt": ASSISTANT}
"""What ShareGPT calls the roles."""


class NotUsableError(Exception):
    """Why a record is refused."""


@dataclass(frozen=True)
class Keys:
    """Names of fields, None for the usual ones."""

    messages: str | None = None
    prompt: str | None = None
    response: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them: role, content, and whatever else the record has; and tools that may be called."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class Pair:
    """A prompt and its response."""

    prompt: str
    response: str

    def as_conversation(self) -> Conversation:
        return Conversation(({"role": "user", "content": self.prompt}, {"role": ASSISTANT, "content": self.response}))


def parse_record(line: bytes, keys: Keys) -> Conversation | Pair:
    """What a line holds. Raises NotUsableError for one that is no record."""
    try:
        values = parse_line(line)
    except ValueError as error:
        raise NotUsableError(str(error)) from None
    if not isinstance(values, dict):
        raise NotUsableError(f"is a {type(values).__name__}, not an object")
    for name in (keys.messages,) if keys.messages else ("messages", "conversations"):
        if name in values:
            return Conversation(_messages(values[name], name), _tools(values.get("tools")))
    if keys.messages and keys.prompt is None:
        raise NotUsableError(f"has no {keys.messages!r}")
    return _pair(values, keys)


def _messages(found: Any, name: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(found, list) or not found:
        raise NotUsableError(f"has a {name!r} that is not a list of messages")
    messages = tuple(_message(message, f"{name}[{number}]") for number, message in enumerate(found))
    if all(message["role"] != ASSISTANT for message in messages):
        raise NotUsableError(f"has no message of the role {ASSISTANT} in {name!r}")
    return messages


def _message(found: Any, place: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise NotUsableError(f"{place} is a {type(found).__name__}, not an object")
    if "from" in found and "role" not in found:
        more = {name: value for name, value in found.items() if name not in ("from", "value")}
        found = {"role": _SPEAKERS.get(str(found["from"]), found["from"]), "content": found.get("value"), **more}
    role, content = found.get("role"), found.get("content")
    if not isinstance(role, str):
        raise NotUsableError(f"{place} has no 'role' (or 'from')")
    if not isinstance(content, str) and not (content is None and found.get("tool_calls")):
        raise NotUsableError(f"{place} has a content of type {type(content).__name__}, not a text")
    return found


def _tools(found: Any) -> tuple[dict[str, Any], ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise NotUsableError("has 'tools' that are not a list of objects")
    return tuple(found) or None


def _pair(values: dict[str, Any], keys: Keys) -> Pair:
    if keys.prompt is not None and keys.response is not None:
        return Pair(_text(values, keys.prompt), _text(values, keys.response))
    response = next((name for name in ("response", "completion", "output") if name in values), None)
    if response is None or not ("prompt" in values or "instruction" in values):
        known = "messages, conversations, prompt with response or completion, instruction with output"
        raise NotUsableError(f"has none of the known fields ({known}); name them with --messages-key or --prompt-key and --response-key")
    if "prompt" in values:
        return Pair(_text(values, "prompt"), _text(values, response))
    more = _text(values, "input") if values.get("input") is not None else ""
    prompt = _text(values, "instruction")
    return Pair(f"{prompt}\n\n{more}" if more else prompt, _text(values, response))


def _text(values: dict[str, Any], name: str) -> str:
    if name not in values:
        raise NotUsableError(f"has no {name!r}")
    if not isinstance(values[name], str):
        raise NotUsableError(f"has a {name!r} of type {type(values[name]).__name__}, not a text")
    return str(values[name])
