#!/usr/bin/env python
"""Make a corpus from Python's own standard library: train.jsonl.zst and heldout.jsonl.zst. See open_lm/tokens/tools/corpus.py."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm.params.fields import UserError, counted, parse_topics  # noqa: E402
from open_lm.tokens.tools.corpus import Part, build_corpus  # noqa: E402


@dataclass(frozen=True)
class CorpusParams:
    """corpus"""

    output_dir: str | None = None
    """Folder for train.jsonl.zst and heldout.jsonl.zst."""
    source_dir: str | None = None
    """Folder of Python files. Default: the standard library of the Python that runs this."""
    heldout_fraction: float = 0.05
    """Share of the files that is held out, chosen by a hash of each path."""
    overwrite: bool = False
    """Replace files that exist."""


def _describe(part: Part) -> str:
    return f"{part.path}: {counted(part.documents, 'document')}, {part.characters:,} characters, {part.bytes:,} bytes"


def main() -> int:
    """Exit status 0, or 2 with the problems on stderr."""
    try:
        topics, _ = parse_topics((CorpusParams,), description=__doc__)
        params: CorpusParams = topics[CorpusParams]
        if params.output_dir is None:
            raise UserError(["--output-dir: missing; give the folder for the corpus"])
        corpus = build_corpus(
            params.output_dir, source_dir=params.source_dir, heldout_fraction=params.heldout_fraction, overwrite=params.overwrite
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for part in (corpus.train, corpus.heldout):
        print(_describe(part))
    for reason, files in corpus.skipped.items():
        print(f"left out, {reason}: {counted(files, 'file')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
