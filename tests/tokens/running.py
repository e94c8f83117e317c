"""Running the preprocessor inside a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from open_lm.tokens.options import InputOptions, Options, OutputOptions, RunOptions, TokenizerOptions
from open_lm.tokens.preprocess import Sizes, preprocess
from open_lm.tokens.stats import Counts

SMALL = Sizes(unit_bytes=4_000, bucket_text_bytes=20_000)
"""Sizes that divide a corpus of some 50 KB into many units and a few buckets."""


def make_options(paths: list[str], tokenizer: Path, out: Path | str | None, **options: Any) -> Options:
    """Options with small defaults, any of them by its name."""
    values = {"seq_len": 32, "shard_size": 16, "num_workers": 1, **options}
    values |= {"input_files": tuple(paths), "tokenizer": str(tokenizer), "output_dir": None if out is None else str(out)}
    topics = []
    for topic in (InputOptions, TokenizerOptions, OutputOptions, RunOptions):
        names = {field.name for field in dataclasses.fields(topic)}
        topics.append(topic(**{name: value for name, value in values.items() if name in names}))
    assert values.keys() <= {field.name for topic in topics for field in dataclasses.fields(topic)}
    return Options(*topics)


def run(paths: list[str], tokenizer: Path, out: Path | str | None, *, sizes: Sizes = SMALL, **options: Any) -> Counts:
    """Shards of some files."""
    counts = preprocess(make_options(paths, tokenizer, out, **options), sizes)
    assert counts is not None
    return counts
