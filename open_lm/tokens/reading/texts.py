"""The texts of input files, for tools that read a corpus once through: no units, no workers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from open_lm.tokens.reading.inputs import STDIN, InputFile, Part, list_inputs
from open_lm.tokens.reading.reader import Reader
from open_lm.tokens.reading.stdin import spool_stdin


def read_texts(patterns: Iterable[str], text_key: str = "text") -> Iterator[str]:
    """The texts of input files (see `list_inputs`; `-` is standard input), in order.

    Raises:
        ValueError: no such file, or a line that is no document, with file, line and why.
    """
    with ExitStack() as stack:
        files = _files(list(patterns), stack)
        reader = stack.enter_context(Reader(text_key))
        for file in files:
            for batch in reader.batches(Part(file)):
                if batch.refused:
                    raise ValueError(f"--input-files {batch.refused[0]}")
                yield from batch.texts


def _files(patterns: Sequence[str], stack: ExitStack) -> list[InputFile]:
    if STDIN not in patterns:
        return list_inputs(patterns)
    return list_inputs(patterns, spool_stdin(stack.enter_context(tempfile.TemporaryDirectory())))
