"""What a line may be, and what is said of one that is nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from open_lm.tokens.instruct.records import Conversation, Keys, NotUsableError, Pair, parse_record

USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


def parsed(record: Any, **keys: str) -> Conversation | Pair:
    return parse_record(json.dumps(record).encode(), Keys(**keys))


def test_the_usual_forms_are_known_by_their_fields() -> None:
    chat = Conversation((USER, ANSWER))
    assert parsed({"messages": [USER, ANSWER], "id": 3}) == chat
    assert parsed({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}) == chat
    assert parsed({"prompt": "u", "response": "a"}) == parsed({"prompt": "u", "completion": "a"}) == Pair("u", "a")
    assert parsed({"instruction": "u", "input": "", "output": "a"}) == parsed({"instruction": "u", "output": "a"}) == Pair("u", "a")
    assert parsed({"instruction": "u", "input": "i", "output": "a"}) == Pair("u\n\ni", "a")
    assert Pair("u", "a").as_conversation() == chat


def test_fields_have_other_names_by_flag() -> None:
    assert parsed({"chat": [USER, ANSWER]}, messages="chat") == Conversation((USER, ANSWER))
    assert parsed({"q": "u", "a": "a"}, prompt="q", response="a") == Pair("u", "a")


def test_tools_and_further_fields_reach_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert parsed({"messages": [USER, call], "tools": [{"name": "f"}]}) == Conversation((USER, call), ({"name": "f"},))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ([USER, ANSWER], "is a list, not an object"),
        ({"text": "t"}, "has none of the known fields"),
        ({"prompt": "t"}, "has none of the known fields"),
        ({"messages": []}, "not a list of messages"),
        ({"messages": [USER]}, "no message of the role assistant"),
        ({"messages": [USER, "a"]}, r"messages\[1\] is a str"),
        ({"messages": [{"content": "u"}, ANSWER]}, r"messages\[0\] has no 'role'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\] has a content of type NoneType"),
        ({"messages": [USER, {"role": "assistant", "content": [1]}]}, r"messages\[1\] has a content of type list"),
        ({"prompt": 3, "response": "a"}, "has a 'prompt' of type int"),
        ({"messages": [USER, ANSWER], "tools": "f"}, "has 'tools'"),
    ],
)
def test_what_is_no_record_says_why(record: Any, why: str) -> None:
    with pytest.raises(NotUsableError, match=why):
        parsed(record)


def test_a_line_that_is_not_json_says_why() -> None:
    with pytest.raises(NotUsableError, match="is not JSON"):
        parse_record(b'{"messages": ', Keys())
    with pytest.raises(NotUsableError, match=r"has half a surrogate pair .* at character 12"):
        parse_record(b'{"prompt": "\\ud800", "response": "a", "score": NaN}', Keys())
    with pytest.raises(NotUsableError, match="has no 'chat'"):
        parsed({"messages": [USER, ANSWER]}, messages="chat")


def test_numbers_that_are_not_finite_are_taken() -> None:
    assert parse_record(b'{"prompt": "p", "response": "r", "score": NaN, "most": Infinity}', Keys()) == Pair("p", "r")
