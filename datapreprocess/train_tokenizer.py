#!/usr/bin/env python
"""Train a byte-level BPE tokenizer that gives back every text exactly. The work is in open_lm/tokens/bpe.py."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.params.fields import UserError, parse_topics  # noqa: E402
from open_lm.tokens.bpe import write_tokenizer  # noqa: E402
from open_lm.tokens.texts import read_texts  # noqa: E402


@dataclass(frozen=True)
class TokenizerParams:
    """tokenizer"""

    input_files: tuple[str, ...] = ()
    """Files or globs of .jsonl, .json (one object a line) or .txt (one document a file), each also .zst or .gz."""
    text_key: str = "text"
    """Where a line's text is; dots lead into nested objects, as in data.text."""
    output: str | None = None
    """The tokenizer.json to write."""
    vocab_size: int = 8192
    """Ids, the special tokens (end of text 0, padding 1) and the 256 bytes included."""
    sample_bytes: int | None = None
    """Train on about this many bytes, spread evenly over the texts. Default: all of them."""
    overwrite: bool = False
    """Replace a tokenizer that exists."""


def main() -> int:
    """Exit status 0, or 2 with the problems on stderr."""
    try:
        topics, _ = parse_topics((TokenizerParams,), description=__doc__)
        params: TokenizerParams = topics[TokenizerParams]
        missing = [f"--{name.replace('_', '-')}: missing" for name in ("input_files", "output") if not getattr(params, name)]
        if missing:
            raise UserError(missing)
        assert params.output
        trained = write_tokenizer(
            lambda: read_texts(params.input_files, params.text_key),
            params.output,
            params.vocab_size,
            sample_bytes=params.sample_bytes,
            overwrite=params.overwrite,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{trained.path}: {trained.vocab_size:,} ids, trained on {trained.documents:,} documents, {trained.bytes:,} bytes")
    print(f"{trained.characters_per_token:.2f} characters per token; every text of the check came back exactly")
    if trained.vocab_size < params.vocab_size:
        print(f"the texts give no more than {trained.vocab_size:,} ids of the {params.vocab_size:,} asked for")
    return 0


if __name__ == "__main__":
    sys.exit(main())
