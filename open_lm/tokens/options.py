"""Options of datapreprocess/make_2048.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from open_lm.params.fields import UserError
from open_lm.shards.members import Format
from open_lm.tokenizer import DEFAULT_TOKENIZER, Engine

LastSequence = Literal["drop", "pad"]


@dataclass(frozen=True)
class InputOptions:
    """input"""

    input_files: tuple[str, ...] = ()
    """Files or globs of .jsonl, .json (one object a line) or .txt (one document a file), each also .zst or .gz."""
    text_key: str = "text"
    """Where a line's text is; dots lead into nested objects, as in data.text."""
    max_bad_fraction: float = 0.0
    """Largest share of documents that may be refused: not JSON, no text, not UTF-8."""
    tokenizer: str = DEFAULT_TOKENIZER
    """A tokenizer.json, a folder that holds one, or a Hugging Face name."""
    eot_token: str | None = None
    """The token put after every document. Default: the tokenizer's own end of text."""
    tokenizer_engine: Engine = "auto"
    """gigatoken is fast; hf is the reference; auto takes gigatoken where it gives the same ids."""


@dataclass(frozen=True)
class OutputOptions:
    """output"""

    output_dir: str | None = None
    """Shards go to <output-dir>/<seq-len>-v1/<consumer>/shard-0000000.tar and on."""
    overwrite: bool = False
    """Replace the shards of an earlier run."""
    upload_to_s3: bool = False
    """Upload the shards to S3_BASE (not built yet)."""
    format: Format = "txt"
    """Members of the shards: txt (OpenLM), json.gz (DCLM) or npy (small and quick to read)."""
    seq_len: int = 2048
    """Tokens of a training sequence; stored sequences have one more."""
    shard_size: int = 8192
    """Sequences in a shard."""
    last_sequence: LastSequence = "drop"
    """What becomes of the tokens after the corpus's last whole sequence: dropped and reported, or padded with end of text."""
    num_consumers: int = 1
    """Folders that the shards are dealt to in turn."""


@dataclass(frozen=True)
class RunOptions:
    """run"""

    seed: int = 0
    """Seed of the shuffle."""
    shuffle: bool = True
    """Shuffle the sequences of the whole corpus; otherwise they keep the input's order."""
    num_workers: int | None = None
    """Processes; the output does not depend on it. Default: all cores."""
    temp_dir: str | None = None
    """Folder for intermediate files, about 2 bytes a token. Default: the output folder."""


def validate(inputs: InputOptions, output: OutputOptions, run: RunOptions) -> None:
    """Raises UserError with every value that can't be."""
    problems = []
    if not inputs.input_files:
        problems.append("--input-files: missing; give files or globs, such as raw_data/*.jsonl.zst")
    if not inputs.text_key.strip("."):
        problems.append("--text-key: is empty; give the name of the text's field, such as text")
    if not 0 <= inputs.max_bad_fraction <= 1:
        problems.append(f"--max-bad-fraction {inputs.max_bad_fraction}: give a share from 0 to 1")
    if not output.output_dir:
        problems.append("--output-dir: missing; give a folder")
    elif "://" in output.output_dir:
        problems.append(f"--output-dir {output.output_dir}: must be a local folder; remote output is not built yet")
    if output.upload_to_s3:
        problems.append("--upload-to-s3: not built yet; write the shards locally and copy the folder")
    for flag, value in (
        ("--seq-len", output.seq_len),
        ("--shard-size", output.shard_size),
        ("--num-consumers", output.num_consumers),
        ("--num-workers", 1 if run.num_workers is None else run.num_workers),
    ):
        if value < 1:
            problems.append(f"{flag} {value}: give 1 or more")
    if problems:
        raise UserError(problems)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
