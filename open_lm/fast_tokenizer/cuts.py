"""Where a long text may be cut so that its pieces, encoded one by one, give its ids. Pure.

Cuts lie between a Latin letter and a space before a Latin letter, or after a line end between a character that is no space and a letter.
Byte-level tokenizers with the pre-tokenizers that `proof` knows always end a token there, no normal form reaches across, and
`may_cut` sees to it that no added token does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_LETTER = "A-Za-z\u0410-\u044f\u4e00-\u9fff"
_CUT = re.compile(rf"[A-Za-z](?= [A-Za-z])|[{_LETTER}0-9.,;:!?)}}>\]\u3002\uff01\uff0c\uff1f]\n(?=[{_LETTER}])")
_REACHES_ACROSS = re.compile(r"[A-Za-z] |\n")


def may_cut(added_tokens: list[dict[str, Any]]) -> bool:
    """No added token of a tokenizer.json reaches across a cut."""
    return not any(_REACHES_ACROSS.search(token["content"]) for token in added_tokens)


def pieces(text: str, size: int) -> Iterator[str]:
    """A text in pieces of `size` characters or somewhat more; longer where it can't be cut."""
    start = 0
    while len(text) - start > size:
        found = _CUT.search(text, start + size - 1)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:] if start else text


def tail(text: str, size: int) -> str:
    """The end of a text from a cut on, at most `size` characters, "" where it can't be cut there."""
    found = _CUT.search(text, max(0, len(text) - size))
    return text[found.end() :] if found else ""
