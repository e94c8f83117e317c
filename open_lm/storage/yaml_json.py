"""YAML and JSON that people and other programs write: in bytes, out plain values, or a ValueError with line and character.

Configurations and rows of tasks may give a key once only: of a second one the first would be lost. Everywhere a byte order mark is passed
over, NaN and Infinity are numbers (as Python's json writes them), and half a surrogate pair is refused, since no tokenizer takes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from open_lm.storage.kind import FIRST_BYTES, instead_of, is_json, stand_in

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?|[{}]', re.DOTALL)


class NotTakenError(ValueError):
    """The text is well-formed and refused all the same."""


def read_json(data: bytes | str, first_line: int = 1, part: bool = False) -> Any:
    """The value of a JSON text whose objects give each key once.

    Args:
        first_line: number of the text's first line, for messages.
        part: it is a part of a file, of which what the whole is need not be said.
    """
    twice = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        values = dict(items)
        twice = twice or len(values) < len(items)
        return values

    try:
        text = _decoded(data)
        value = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        line, character = _place(text, error.pos)
        problem = f"line {first_line + line}: is not JSON: {error.msg}, at character {character}"
        raise ValueError(_unless_another(data, problem, part)) from None
    except ValueError as error:
        raise ValueError(_unless_another(data, str(error))) from None
    except RecursionError:
        raise ValueError(f"line {first_line}: is not JSON that can be read: too deeply nested") from None
    _refuse_half_pairs(text, first_line)
    if twice:
        _refuse_second_key(text, first_line)
    return value


def parse_line(line: bytes) -> Any:
    """The value of one line of a corpus, quickly; keys are not compared. The ValueError says what the line is."""
    import orjson

    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        message, place = error.msg, error.pos
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as damage:
        raise ValueError(why_not_utf8(damage)) from None
    why = stand_in("JSON", line[:FIRST_BYTES]) or f"is not JSON: {message}, at character {place}"
    why = half_pair_words(place) if "surrogate" in message else why
    if "NaN" in text or "Infinity" in text:  # orjson refuses them
        try:
            value = json.loads(text)
            if (character := half_pair(text)) is None:
                return value
            why = half_pair_words(character)
        except (ValueError, RecursionError):
            pass
    raise ValueError(why)


def why_not_utf8(error: UnicodeDecodeError) -> str:
    """In words, what keeps bytes from being text."""
    return f"is not UTF-8: {error.reason}, byte 0x{error.object[error.start]:02x}"


def half_pair_words(character: int) -> str:
    """What to say of half a surrogate pair."""
    return f"has half a surrogate pair (\\ud800 to \\udfff) at character {character}, which stands for no character"


def half_pair(text: str, start: int = 0, stop: int | None = None) -> int | None:
    """Where the first `\\u` escape of half a surrogate pair stands in JSON (or a quoted YAML scalar); None where there is none."""
    if not re.search(r"\\u[dD][89a-fA-F]", text):
        return None
    high: re.Match[str] | None = None
    for match in _ESCAPE.finditer(text, start, len(text) if stop is None else stop):
        code = int(match[1], 16) if match[1] else 0
        follows = high is not None and match.start() == high.end()
        if high is not None and not (follows and 0xDC00 <= code < 0xE000):
            return high.start()
        if high is None and 0xDC00 <= code < 0xE000:
            return match.start()
        high = match if 0xD800 <= code < 0xDC00 else None
    return None if high is None else high.start()


def _refuse_half_pairs(text: str, first_line: int, start: int = 0, stop: int | None = None) -> None:
    if (found := half_pair(text, start, stop)) is not None:
        line, character = _place(text, found)
        raise NotTakenError(f"line {first_line + line}: {half_pair_words(character)}")


def _refuse_second_key(text: str, first_line: int) -> None:
    """Of JSON that is known to have one."""
    objects: list[dict[str, int]] = []
    for match in _TOKEN.finditer(text):
        if match[0] == "{":
            objects.append({})
        elif match[0] == "}":
            objects.pop()
        elif match[1]:
            key = json.loads(match[0][: -len(match[1])])
            if key in objects[-1]:
                first, second = (first_line + _place(text, at)[0] for at in (objects[-1][key], match.start()))
                raise NotTakenError(_twice(key, second, first))
            objects[-1][key] = match.start()


def _twice(key: str, line: int, first: int) -> str:
    return f"line {line}: the key {key!r} is given twice, first in line {first}; keep one of them"


def _place(text: str, position: int) -> tuple[int, int]:
    """Lines before a position, and characters before it in its own line."""
    return text.count("\n", 0, position), position - (text.rfind("\n", 0, position) + 1)


def _decoded(data: bytes | str) -> str:
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    try:
        return data.decode(json.detect_encoding(data))  # which knows the byte order marks
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise ValueError(f"line {line}: {why_not_utf8(error)}") from None


def _unless_another(data: bytes | str, problem: str, part: bool = False) -> str:
    """A problem with a text, or what else the file is, such as a page or an archive; of a part of a file, a page or a pointer alone."""
    begin = data[:FIRST_BYTES] if isinstance(data, bytes) else data[:FIRST_BYTES].encode("utf-8", "replace")
    if part:
        return stand_in("JSON", begin) or problem
    return problem if is_json(begin) else instead_of("JSON", begin)


def read_yaml(data: bytes | str, text_keys: Collection[str] = ()) -> Any:
    """The value of a YAML text whose mappings give each key once (`<<` aside, which merges).

    Args:
        text_keys: keys (with _ for -) whose values are text as it is written, so that `label: yes` and `label: 007` are no truth value
            and no number; of a list, its elements.
    """
    import yaml

    text = _decoded(data)

    class Loader(yaml.SafeLoader):
        def compose_scalar_node(self, anchor: Any) -> Any:
            node = super().compose_scalar_node(anchor)
            if node.style == '"' and re.search("[\ud800-\udfff]", node.value):
                _refuse_half_pairs(text, 1, node.start_mark.index, node.end_mark.index)
                node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")  # PyYAML leaves the halves apart
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            lines: dict[Any, int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                    continue
                line, meant = key.start_mark.line + 1, self.construct_object(key)  # `yes` and `true` are one key
                if meant in lines:
                    raise NotTakenError(_twice(key.value, line, lines[meant]))
                lines[meant] = line
                if key.value.replace("-", "_") in text_keys:
                    for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                        if isinstance(one, yaml.ScalarNode) and not one.tag.endswith(":null"):
                            one.tag = "tag:yaml.org,2002:str"
            return node

    try:
        return Loader(text).get_single_data()
    except NotTakenError:
        raise
    except RecursionError:
        raise ValueError("is not YAML that can be read: too deeply nested") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, place = (f"line {mark.line + 1}: ", f", at character {mark.column}") if mark else ("", "")
        raise ValueError(f"{line}is not YAML: {error.problem}{place}") from None
    except (yaml.YAMLError, ValueError) as error:  # such as a day that no calendar has
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None
