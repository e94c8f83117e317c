"""Options of datapreprocess/make_2048.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from open_lm import storage
from open_lm.params.fields import UserError
from open_lm.shards.members import Format
from open_lm.tokenizer import DEFAULT_TOKENIZER, Engine
from open_lm.tokens.memory import parse_size

LastSequence = Literal["drop", "pad"]
S3_BASE = "S3_BASE"


@dataclass(frozen=True)
class InputOptions:
    """input"""

    input_files: tuple[str, ...] = ()
    """Files, folders, globs, URLs: .jsonl, .json (one object a line), .txt (one document), each also .zst or .gz; .parquet; - for stdin."""
    text_key: str = "text"
    """Where a line's text is; dots lead into nested objects, as in data.text."""
    max_bad_fraction: float = 0.0
    """Largest share of documents that may be refused: not JSON, no text, not UTF-8."""


@dataclass(frozen=True)
class TokenizerOptions:
    """tokenizer"""

    tokenizer: str = DEFAULT_TOKENIZER
    """A tokenizer.json, a folder that holds one, or a Hugging Face name."""
    eot_token: str | None = None
    """The token put after every document. Default: the tokenizer's own end of text."""
    bos: bool = False
    """Put the tokenizer's begin-of-sequence token before every document."""
    normalize: Literal["none", "nfc"] = "none"
    """Bring texts to this Unicode normal form before they are encoded; the tokenizer's own normaliser works in any case."""
    escape_special: bool = False
    """Encode special tokens' strings inside documents as ordinary text. Otherwise they become the special tokens."""
    tokenizer_engine: Engine = "auto"
    """gigatoken is fast; hf is the reference; auto takes gigatoken where it gives the same ids."""
    verify: bool = True
    """Compare a sample of every unit with the reference; a difference stops the run."""


@dataclass(frozen=True)
class OutputOptions:
    """output"""

    output_dir: str | None = None
    """Shards go to <output-dir>/<seq-len>-v1/<consumer>/shard-0000000.tar and on; local or a URL such as s3://bucket/folder."""
    upload_to_s3: bool = False
    """Shards go to $S3_BASE/<consumer>/shard-0000000.tar and on instead, in S3."""
    overwrite: bool = False
    """Replace the shards of another command."""
    resume: bool = True
    """Go on with the work that a stopped run of the same command left; otherwise begin anew."""
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
    seed: int = 0
    """Seed of the shuffle."""
    shuffle: bool = True
    """Shuffle the sequences of the whole corpus; otherwise they keep the input's order."""


@dataclass(frozen=True)
class RunOptions:
    """run. The output does not depend on these."""

    num_workers: int | None = None
    """Processes. Default: all cores."""
    memory_limit: str | None = None
    """Memory of all processes together, such as 4GB. Default: 2 GB, and 150 MB for each worker above 8."""
    temp_dir: str | None = None
    """Folder for intermediate files, about 2 bytes a token. Default: beside the output folder, or the user's cache for a remote one."""
    dry_run: bool = False
    """Say what would be done, with sizes and time from a sample of the text, and do nothing."""


@dataclass(frozen=True)
class Options:
    """All of them."""

    input: InputOptions
    tokenizer: TokenizerOptions
    output: OutputOptions
    run: RunOptions

    @property
    def s3_base(self) -> str | None:
        """S3_BASE where the shards are to go there."""
        return os.environ.get(S3_BASE) if self.output.upload_to_s3 else None


def validate(options: Options) -> None:
    """Raises UserError with every value that can't be."""
    inputs, output, run = options.input, options.output, options.run
    problems = []
    if not inputs.input_files:
        problems.append("--input-files: missing; give files or globs, such as raw_data/*.jsonl.zst")
    if not inputs.text_key.strip("."):
        problems.append("--text-key: is empty; give the name of the text's field, such as text")
    if not 0 <= inputs.max_bad_fraction <= 1:
        problems.append(f"--max-bad-fraction {inputs.max_bad_fraction}: give a share from 0 to 1")
    if output.upload_to_s3 and not options.s3_base:
        problems.append("--upload-to-s3: the environment variable S3_BASE is not set; set it to s3://bucket/folder/")
    if not output.output_dir and not output.upload_to_s3:
        problems.append("--output-dir: missing; give a folder")
    problems += storage.unwritable("--output-dir", output.output_dir, folder=True, urls=True)
    problems += storage.unwritable("--temp-dir", run.temp_dir, folder=True)
    for flag, value in (
        ("--seq-len", output.seq_len),
        ("--shard-size", output.shard_size),
        ("--num-consumers", output.num_consumers),
        ("--num-workers", 1 if run.num_workers is None else run.num_workers),
    ):
        if value < 1:
            problems.append(f"{flag} {value}: give 1 or more")
    if run.memory_limit is not None:
        try:
            parse_size(run.memory_limit)
        except ValueError as error:
            problems.append(f"--memory-limit {error}")
    if problems:
        raise UserError(problems)
