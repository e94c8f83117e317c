"""A conversation to segments of text, each of which counts or doesn't. Pure but for the template's rendering.

What the assistant says is found in one of two ways: by the template's own `{% generation %}` blocks; or, for each assistant turn, as
what the rendering up to and including it has more than the rendering before it with the assistant's turn begun (`add_generation_prompt`).
Each of these has to begin the rendering of the whole; a template that writes earlier turns otherwise once more follow is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from open_lm.tokens.instruct.options import LossOn
from open_lm.tokens.instruct.records import ASSISTANT, Conversation, NotUsableError, Pair
from open_lm.tokens.instruct.template import ChatTemplate


class Segment(NamedTuple):
    """Some text of a conversation, and whether its tokens are targets."""

    text: str
    counts: bool


def segments_of(
    record: Conversation | Pair, template: ChatTemplate | None, separator: str, loss_on: LossOn, ends: Sequence[str]
) -> list[Segment]:
    """The segments of a record, none empty, neighbours alike joined; together they are its text.

    Args:
        template: None for plain pairs: prompt, separator, response.
        ends: special tokens. White space that a template puts after one that ends a turn doesn't count.

    Raises:
        NotUsableError: the template does not take it, or nothing in it would count.
    """
    if template is None:
        text, spans = _plain(record, separator)
    else:
        conversation = record.as_conversation() if isinstance(record, Pair) else record
        text, spans = _rendered(conversation, template)
        spans = [(start, _without_space(text, start, stop, ends)) for start, stop in spans]
    if loss_on == "all":
        spans = [(0, len(text))]
    elif loss_on == "last":
        spans = spans[-1:]
    segments = _cut(text, spans)
    if not any(segment.counts for segment in segments):
        raise NotUsableError("the assistant says nothing in it, so that no token would count")
    return segments


def _plain(record: Conversation | Pair, separator: str) -> tuple[str, list[tuple[int, int]]]:
    if isinstance(record, Conversation):
        raise NotUsableError("is a conversation, and the tokenizer has no chat template; give one with --chat-template")
    start = len(record.prompt) + len(separator)
    return f"{record.prompt}{separator}{record.response}", [(start, start + len(record.response))]


def _rendered(conversation: Conversation, template: ChatTemplate) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and characters [start, stop) of each of its assistant turns."""
    messages, tools = conversation.messages, conversation.tools
    text, spans = template.render(messages, tools)
    turns = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT]
    if template.marks_generation:
        if len(spans) != len(turns):
            raise NotUsableError(f"the chat template marks {len(spans)} generations in a conversation of {len(turns)} assistant turns")
        return text, spans
    return text, [_turn(conversation, template, text, number) for number in turns]


def _turn(conversation: Conversation, template: ChatTemplate, text: str, number: int) -> tuple[int, int]:
    messages, tools = conversation.messages, conversation.tools
    before, _ = template.render(messages[:number], tools, prompt=True)
    until = text if number == len(messages) - 1 else template.render(messages[: number + 1], tools)[0]
    if not until.startswith(before):
        raise NotUsableError(
            f"the chat template writes the prompt of the assistant's turn {number} otherwise than that turn itself"
            f" (from character {_same(until, before)} on); mark what is generated with {{% generation %}} in --chat-template"
        )
    if not text.startswith(until):
        raise NotUsableError(
            f"the chat template writes the assistant's turn {number} otherwise once more follows (from character {_same(text, until)} on);"
            " mark what is generated with {% generation %} in --chat-template"
        )
    return len(before), len(until)


def _same(a: str, b: str) -> int:
    """Characters that two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _without_space(text: str, start: int, stop: int, ends: Sequence[str]) -> int:
    """The end of a turn without white space that follows its end-of-turn token."""
    shorter = start + len(text[start:stop].rstrip())
    return shorter if text[start:shorter].endswith(tuple(ends)) else stop


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> list[Segment]:
    segments: list[Segment] = []
    at = 0
    for start, stop in spans:
        for piece, counts in ((text[at:start], False), (text[start:stop], True)):
            if piece and segments and segments[-1].counts == counts:
                segments[-1] = Segment(segments[-1].text + piece, counts)
            elif piece:
                segments.append(Segment(piece, counts))
        at = stop
    return [*segments, Segment(text[at:], False)] if at < len(text) else segments
