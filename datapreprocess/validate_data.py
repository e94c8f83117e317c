#!/usr/bin/env python
"""Check that every text of a corpus comes back from a tokenizer, and list those that don't. See open_lm/tokens/tools/validation.py.

python datapreprocess/validate_data.py --input-files raw_data --tokenizer EleutherAI/gpt-neox-20b --output-csv bad.csv

Exit status: 0 all is well; 1 a text is bad (no document, or it comes back changed); 2 the options or the files can't be used.
"""

from __future__ import annotations

import functools
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm import storage  # noqa: E402
from open_lm.params.fields import UserError, parse_topics  # noqa: E402

if TYPE_CHECKING:
    from open_lm.tokens.reading.inputs import InputFile
    from open_lm.tokens.tools.validation import Findings

SHOWN = 20


@dataclass(frozen=True)
class ValidationParams:
    """validation"""

    input_files: tuple[str, ...] = ()
    """Files, folders, globs or URLs: .jsonl, .json (one object a line), .txt (one document a file), each also .zst or .gz; .parquet."""
    text_key: str = "text"
    """Where a line's text is; dots lead into nested objects, as in data.text."""
    tokenizer: str = "EleutherAI/gpt-neox-20b"
    """A tokenizer.json, a folder that holds one, or a Hugging Face name."""
    output_csv: str | None = None
    """List the bad ones here: file, line, reason, excerpt. Without it, the first 20 are shown."""
    list: Literal["bad", "all"] = "bad"
    """What the list holds: bad documents, or odd ones too (empty, duplicate, with control characters, ...), which are always counted."""
    most_listed: int = 10_000
    """Documents in the list, the first of them by file and line; all are counted."""
    long_line: int = 100_000
    """Characters that a line inside a text may have before it counts as long."""
    duplicates: bool = True
    """Count texts that are there already, by 64 bits of a hash; 8 bytes of memory for each document, 20 with --list all."""
    num_workers: int | None = None
    """Processes; the result does not depend on it. Default: all cores."""
    overwrite: bool = False
    """Replace a list that exists."""


def main() -> int:
    """Exit status 0; 1 for bad texts, and for a worker that died; 2 with the problems on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")
    try:
        topics, _ = parse_topics((ValidationParams,), prog="validate_data.py", description=__doc__)
        findings = _run(topics[ValidationParams])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if findings.bad else 0


def _check(params: ValidationParams) -> None:
    from open_lm.tokens.tools.tool_files import output_problems

    problems = [] if params.input_files else ["--input-files: missing; give files or globs, such as raw_data/*.jsonl.zst"]
    problems += output_problems({"--output-csv": params.output_csv}, params.overwrite)
    for flag, value in (
        ("--most-listed", params.most_listed),
        ("--long-line", params.long_line),
        ("--num-workers", 1 if params.num_workers is None else params.num_workers),
    ):
        if value < 1:
            problems.append(f"{flag} {value}: give 1 or more")
    if problems:
        raise UserError(problems)


def _run(params: ValidationParams) -> Findings:
    _check(params)
    from open_lm.tokenizer import load_tokenizer
    from open_lm.tokens.reading.inputs import list_inputs
    from open_lm.tokens.tools.survey import survey, workers
    from open_lm.tokens.tools.tool_files import spooled
    from open_lm.tokens.tools.validation import Checks, Findings, ValidationVisitor
    from open_lm.tokens.unit import encoder_work

    findings = Findings()
    with tempfile.TemporaryDirectory() as folder:
        files = list_inputs(spooled(params.input_files, folder))
        work = encoder_work(load_tokenizer(params.tokenizer), folder, verify=False)  # no ids are written
        checks = Checks(work, params.long_line, params.duplicates, params.list == "all", params.most_listed)
        with workers(params.num_workers, work) as executor:
            for visitor in survey(functools.partial(ValidationVisitor, checks), files, params.text_key, executor):
                findings.add(visitor.findings, params.most_listed)
        findings.finish(checks)
        _report(findings, files, params)
    return findings


def _report(findings: Findings, files: Sequence[InputFile], params: ValidationParams) -> None:
    from open_lm.tokens.tools.validation import BAD, ODD, csv_lines

    print(f"{'documents':<34} {findings.documents:>16,}\n{'characters':<34} {findings.characters:>16,}")
    for kind in (*BAD, *ODD):
        print(f"{kind:<34} {findings.counts[kind]:>16,}")
    lines = list(csv_lines(findings.listed if params.output_csv else findings.listed[:SHOWN], files))
    if params.output_csv:
        storage.write_bytes(params.output_csv, "".join(lines).encode())
        print(f"{params.output_csv}: {len(findings.listed):,} listed")
    elif findings.listed:
        print("".join(lines), end="", file=sys.stderr)
    print(f"{findings.bad:,} bad" if findings.bad else "every text comes back")


if __name__ == "__main__":
    sys.exit(main())
