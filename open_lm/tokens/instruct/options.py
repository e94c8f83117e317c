"""Options of datapreprocess/make_instruct.py."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from open_lm import storage
from open_lm.params.fields import UserError
from open_lm.tokenizer import DEFAULT_TOKENIZER, Engine, text_problem

LossOn = Literal["assistant", "last", "all"]
Long = Literal["split", "truncate", "drop"]
OWN_TEMPLATE, PLAIN = "auto", "plain"


@dataclass(frozen=True)
class RecordOptions:
    """input"""

    input_files: tuple[str, ...] = ()
    """Files, folders, globs, URLs of .jsonl (or .json with one object a line), each also .zst or .gz; - for stdin."""
    messages_key: str | None = None
    """Field of a conversation's list of messages. Default: messages, or conversations (with from and value)."""
    prompt_key: str | None = None
    """Field of a single prompt. Default: prompt, or instruction followed by an empty line and input, where that is there."""
    response_key: str | None = None
    """Field of its response. Default: response, completion or output."""
    max_bad_fraction: float = 0.0
    """Largest share of records that may be refused: not JSON, no conversation, or one that the template does not take."""


@dataclass(frozen=True)
class TemplateOptions:
    """tokenizer and template"""

    tokenizer: str = DEFAULT_TOKENIZER
    """A tokenizer.json, a folder that holds one, or a Hugging Face name."""
    eot_token: str | None = None
    """The token put after every conversation. Default: the tokenizer's own end of text."""
    tokenizer_engine: Engine = "auto"
    """gigatoken is fast; hf is the reference; auto takes gigatoken where it gives the same ids."""
    chat_template: str = OWN_TEMPLATE
    """A file with a Jinja chat template; auto: the tokenizer's own where it has one; plain: prompt, separator, response."""
    separator: str = "\n"
    """What stands between prompt and response where there is no template."""
    template_date: str | None = None
    """Today's date for templates that ask for it, as in 2026-01-31, so that the output does not depend on the day."""
    loss_on: LossOn = "assistant"
    """Which tokens count: those of all assistant turns, of the last one only, or all."""


@dataclass(frozen=True)
class InstructOutput:
    """output"""

    output_dir: str | None = None
    """Shards go to <output-dir>/<seq-len>-v1/<consumer>/shard-0000000.tar and on; local or a URL such as s3://bucket/folder."""
    overwrite: bool = False
    """Replace the shards of another command."""
    resume: bool = True
    """Go on with the work that a stopped run of the same command left; otherwise begin anew."""
    seq_len: int = 2048
    """Tokens of a training sequence; stored sequences have one more."""
    long: Long = "split"
    """What becomes of a conversation longer than a sequence: split over several, truncated at its end, or dropped."""
    shard_size: int = 8192
    """Sequences in a shard."""
    num_consumers: int = 1
    """Folders that the shards are dealt to in turn."""
    seed: int = 0
    """Seed of the shuffle."""
    shuffle: bool = True
    """Shuffle the packed sequences; otherwise they keep the input's order, roughly."""


@dataclass(frozen=True)
class InstructRun:
    """run. The output does not depend on these."""

    num_workers: int | None = None
    """Processes. Default: all cores."""
    temp_dir: str | None = None
    """Folder for intermediate files, about 4 bytes a token. Default: beside the output folder, or the user's cache for a remote one."""


@dataclass(frozen=True)
class InstructOptions:
    """All of them."""

    input: RecordOptions
    template: TemplateOptions
    output: InstructOutput
    run: InstructRun


def validate(options: InstructOptions) -> None:
    """Raises UserError with every value that can't be."""
    inputs, output = options.input, options.output
    problems = []
    if not inputs.input_files:
        problems.append("--input-files: missing; give files or globs, such as chats/*.jsonl.zst")
    for flag, key in (
        ("--messages-key", inputs.messages_key),
        ("--prompt-key", inputs.prompt_key),
        ("--response-key", inputs.response_key),
    ):
        if key == "":
            problems.append(f"{flag}: is empty; give the name of a field, or leave the flag out")
    if (inputs.prompt_key is None) != (inputs.response_key is None):
        problems.append("--prompt-key, --response-key: one is given without the other; give both or neither")
    if (problem := text_problem(options.template.separator)) is not None:
        problems.append(f"--separator: {problem}")
    if not 0 <= inputs.max_bad_fraction <= 1:
        problems.append(f"--max-bad-fraction {inputs.max_bad_fraction}: give a share from 0 to 1")
    if not output.output_dir:
        problems.append("--output-dir: missing; give a folder")
    problems += storage.unwritable("--output-dir", output.output_dir, folder=True, urls=True)
    problems += storage.unwritable("--temp-dir", options.run.temp_dir, folder=True)
    if options.template.template_date is not None:
        try:
            date.fromisoformat(options.template.template_date)
        except ValueError:
            problems.append(f"--template-date {options.template.template_date}: is no date; give one such as 2026-01-31")
    for flag, value in (
        ("--seq-len", output.seq_len),
        ("--shard-size", output.shard_size),
        ("--num-consumers", output.num_consumers),
        ("--num-workers", 1 if options.run.num_workers is None else options.run.num_workers),
    ):
        if value < 1:
            problems.append(f"{flag} {value}: give 1 or more")
    if problems:
        raise UserError(problems)
