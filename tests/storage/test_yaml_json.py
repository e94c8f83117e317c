"""YAML and JSON of other people: a key once, byte order marks, NaN, halves of surrogate pairs; mistakes by line and character."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_lm.storage.yaml_json import NotTakenError, parse_line, read_json, read_yaml

HALF = r"has half a surrogate pair (\ud800 to \udfff) at character"


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (read_json, '{"a": {"b": 1,\n "c": "}\\"b\\":",\n "b": 2}}', "line 3: the key 'b' is given twice, first in line 1"),
        (read_json, '[{"a": 1}, {"\\u0061": 1,\n"a": 2}]', "line 2: the key 'a' is given twice, first in line 1"),
        (read_yaml, "a: {x: 1}\nb: 2\n'a': 3\n", "line 3: the key 'a' is given twice, first in line 1"),
        (read_yaml, "yes: 1\ntrue: 2", "line 2: the key 'true' is given twice, first in line 1"),
        (read_yaml, "- a:\n    x: 1\n    x: 1\n", "line 3: the key 'x' is given twice, first in line 2"),
        (read_json, '{"a":\n "\\ud83d\\ude00 \\ud800"}', f"line 2: {HALF} 15"),
        (read_yaml, 'a: 1\nb: "\\ud83d\\ude00 \\udc00"', f"line 2: {HALF} 17"),
        (read_json, '{"a": 1,\n "b" 2}', "line 2: is not JSON: Expecting ':' delimiter, at character 5"),
        (read_yaml, "a: 1\nb: [1", "line 2: is not YAML: expected ',' or ']', but got '<stream end>', at character 5"),
        (read_json, "[" * 100_000, "line 1: is not JSON that can be read: too deeply nested"),
        (read_yaml, "[" * 5000, "is not YAML that can be read: too deeply nested"),
        (read_json, b'{\n"a": "\xff"}', "line 2: is not UTF-8: invalid start byte, byte 0xff"),
        (read_yaml, "a: 2026-13-45", "is not YAML: month must be in 1..12"),
    ],
)
def test_what_is_wrong_is_said_with_line_and_key(read: Any, text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError) as error:
        read(text)
    assert str(error.value).startswith(words)
    assert isinstance(error.value, NotTakenError) == ("twice" in words or "half" in words)


def test_keys_that_look_alike_in_different_places_are_fine() -> None:
    assert read_json('{"a": {"a": "\\"a\\": 1"}, "b": [{"a": 1}, {"a": 2}]}')["b"] == [{"a": 1}, {"a": 2}]
    assert read_yaml("x: &x {a: 1, b: 1}\ny: &y {<<: *x, a: 2}\nz: [{<<: *y, b: 3}, {<<: *x, <<: *y}]")["z"][0] == {"a": 2, "b": 3}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_passed_over(encoding: str) -> None:
    assert read_json('{"a": "é"}'.encode(encoding)) == read_yaml("a: é".encode(encoding)) == {"a": "é"}


def test_a_page_or_a_pointer_in_the_place_of_lines_is_named() -> None:
    for line, words in ((b"<!DOCTYPE html>", "an HTML or XML page"), (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer")):
        for read in (parse_line, lambda data: read_json(data, part=True)):
            with pytest.raises(ValueError, match=f"is not JSON but {words}"):
                read(line)


def test_numbers_of_pythons_json_are_taken_and_nothing_else_more() -> None:
    line = json.dumps({"text": "NaN \ud83d\ude00", "score": [math.inf, -math.inf, 1.5]}).encode()
    for read in (parse_line, read_json):
        assert read(line) == {"text": "NaN \U0001f600", "score": [math.inf, -math.inf, 1.5]}
        assert math.isnan(read(b'{"a": NaN}')["a"])
    for line, words in ((b'{"a": NaN, "b": "\\ud800"}', f"{HALF} 17"), (b'{"a": NaN} x', "is not JSON"), (b'{"a": nan}', "is not JSON")):
        with pytest.raises(ValueError) as error:
            parse_line(line)
        assert str(error.value).startswith(words)


@given(st.recursive(st.text() | st.integers() | st.booleans() | st.none(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_all_json_that_python_writes_is_read(value: Any) -> None:
    assert read_json(json.dumps(value)) == read_json(json.dumps(value, ensure_ascii=False, indent=1)) == value


def test_text_stays_as_it_is_written_where_a_key_is_text() -> None:
    text = "label: yes\nother-text: 007\nmany: [on, 1.50, null]\nnumber: 0x10\ntruth: off\nlast: ~\n"
    assert read_yaml(text, ("label", "other_text", "many", "last")) == {
        **{"label": "yes", "other-text": "007", "many": ["on", "1.50", None], "number": 16, "truth": False, "last": None}
    }


def test_a_second_key_of_a_large_vocabulary_is_found_at_once() -> None:
    words = json.dumps({f"word {number}": number for number in range(50_000)}, indent=0)
    began = time.process_time()
    with pytest.raises(ValueError, match="line 50001: the key 'word 0' is given twice, first in line 2"):
        read_json(words[: -len("\n}")] + ', "word 0": 1}')
    assert time.process_time() - began < 2
