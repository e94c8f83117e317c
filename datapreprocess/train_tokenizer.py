#!/usr/bin/env python
"""Train a byte-level BPE tokenizer that gives back every text exactly. The work is in open_lm/tokens/tools/bpe.py."""

from __future__ import annotations

import functools
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm.params.fields import UserError, counted, parse_topics  # noqa: E402

if TYPE_CHECKING:
    from open_lm.tokens.tools.bpe import TrainedTokenizer, Vocabulary


@dataclass(frozen=True)
class TokenizerParams:
    """tokenizer"""

    input_files: tuple[str, ...] = ()
    """Files, folders, globs or URLs: .jsonl, .json (one object a line), .txt (one document a file), each also .zst or .gz; .parquet."""
    text_key: str = "text"
    """Where a line's text is; dots lead into nested objects, as in data.text."""
    output: str | None = None
    """The tokenizer.json to write."""
    vocab_size: int = 8192
    """Ids, the special tokens (end of text 0, padding 1) and the 256 bytes included."""
    sample_bytes: str | None = "1GB"
    """Train on about this much text, spread evenly over the documents. It bounds the memory: 1 KB for each different word. none: on all."""
    overwrite: bool = False
    """Replace a tokenizer that exists."""


def main() -> int:
    """Exit status 0; 2 with the problems on stderr; 1 for a file that can't be read or written."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")
    try:
        topics, _ = parse_topics((TokenizerParams,), prog="train_tokenizer.py", description=__doc__)
        trained = _train(topics[TokenizerParams])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for line in _report(trained, topics[TokenizerParams].vocab_size):
        print(line)
    return 0


def _train(params: TokenizerParams) -> TrainedTokenizer:
    missing = [f"--{name.replace('_', '-')}: missing" for name in ("input_files", "output") if not getattr(params, name)]
    from open_lm.tokens.memory import parse_size
    from open_lm.tokens.reading.texts import read_texts
    from open_lm.tokens.tools.bpe import write_tokenizer
    from open_lm.tokens.tools.tool_files import output_problems, spooled

    if missing:
        raise UserError(missing + output_problems({"--output": params.output}, params.overwrite))

    try:
        sample = None if params.sample_bytes is None else parse_size(params.sample_bytes)
    except ValueError as error:
        raise ValueError(f"--sample-bytes {error}") from None
    assert params.output
    with tempfile.TemporaryDirectory() as folder:
        read = functools.partial(read_texts, spooled(params.input_files, folder), params.text_key)
        return write_tokenizer(read, params.output, params.vocab_size, sample_bytes=sample, overwrite=params.overwrite)


def _report(trained: TrainedTokenizer, asked_for: int) -> list[str]:
    lines = [
        f"{trained.path}: {trained.vocab_size:,} ids, trained on {counted(trained.documents, 'document')}, {trained.bytes:,} bytes",
        _on("text that it was trained on", trained.trained_on),
    ]
    if trained.heldout is None:
        lines.append("held-out text: none, there are too few documents")
    else:
        lines.append(_on("held-out text", trained.heldout))
        lines.append(f"  of the {trained.vocab_size:,} ids, the held-out text has {trained.heldout.ids_used:,}")
    lines.append(f"longest tokens: {', '.join(map(repr, trained.longest)) or 'none'}")
    lines.append("every text of the check came back exactly")
    if trained.vocab_size < asked_for:
        lines.append(f"the texts give no more than {trained.vocab_size:,} ids of the {asked_for:,} asked for")
    return lines


def _on(name: str, seen: Vocabulary) -> str:
    alone = seen.single_bytes / seen.tokens if seen.tokens else 0.0
    return (
        f"{name}: {seen.characters_per_token:.2f} characters and {seen.bytes_per_token:.2f} bytes per token,"
        f" {alone:.2%} of the tokens are parts of a character ({counted(seen.documents, 'document')}, {seen.tokens:,} tokens)"
    )


if __name__ == "__main__":
    sys.exit(main())
