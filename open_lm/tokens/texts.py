"""The texts of input files, for tools that read a corpus once through: no units, no workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from open_lm.tokens.inputs import Part, list_inputs
from open_lm.tokens.read import Reader, Refused


def read_texts(patterns: Iterable[str], text_key: str = "text") -> Iterator[str]:
    """The texts of files and globs (.jsonl, .json, .txt, each also .zst or .gz), in order.

    Raises:
        ValueError: no such file, or a line that is no document, with file, line and why.
    """
    with Reader(text_key) as reader:
        for file in list_inputs(patterns):
            for document in reader.documents(Part(file)):
                if isinstance(document, Refused):
                    raise ValueError(f"{document.place}: {document.why}")
                yield document.text
