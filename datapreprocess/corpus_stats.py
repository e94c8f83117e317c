#!/usr/bin/env python
"""Figures of a corpus, of texts or of shards: documents, characters, tokens, lengths, fill. See open_lm/tokens/tools/corpus_stats.py.

python datapreprocess/corpus_stats.py --input-files raw_data --tokenizer EleutherAI/gpt-neox-20b --output-png lengths.png
python datapreprocess/corpus_stats.py --shards preproc_data/2048-v1 --output-json figures.json
"""

from __future__ import annotations

import functools
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm import storage  # noqa: E402
from open_lm.params.fields import UserError, parse_topics  # noqa: E402

if TYPE_CHECKING:
    from open_lm.tokens.tools.corpus_stats import ShardFigures, TextFigures


@dataclass(frozen=True)
class StatsParams:
    """corpus"""

    input_files: tuple[str, ...] = ()
    """Files, folders, globs or URLs: .jsonl, .json (one object a line), .txt (one document a file), each also .zst or .gz; .parquet."""
    text_key: str = "text"
    """Where a line's text is; dots lead into nested objects, as in data.text."""
    tokenizer: str = "EleutherAI/gpt-neox-20b"
    """A tokenizer.json, a folder that holds one, or a Hugging Face name."""
    seq_len: int = 2048
    """Tokens of a training sequence; stored sequences have one more."""
    num_workers: int | None = None
    """Processes; the figures do not depend on it, but for documents per sequence. Default: all cores."""
    shards: str | None = None
    """Instead of texts, the folder with stats.json that make_2048.py wrote."""


@dataclass(frozen=True)
class OutputParams:
    """output"""

    table: Literal["plain", "markdown"] = "plain"
    """How the table is printed."""
    output_json: str | None = None
    """Write the figures, with the histogram of the lengths, to this file."""
    output_png: str | None = None
    """Draw the lengths of the documents and the fill of the sequences."""
    overwrite: bool = False
    """Replace files that exist."""


def main() -> int:
    """Exit status 0; 2 with the problems on stderr; 1 for a file that can't be read or written, or a worker that died."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")
    try:
        topics, _ = parse_topics((StatsParams, OutputParams), prog="corpus_stats.py", description=__doc__)
        _run(topics[StatsParams], topics[OutputParams])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(params: StatsParams, output: OutputParams) -> None:
    _check(params, output)
    from open_lm.tokens.tools.corpus_stats import of_shards, table, to_json_text

    figures: TextFigures | ShardFigures = of_shards(params.shards) if params.shards else _of_texts(params)
    print(table(figures.rows(), output.table))
    if output.output_json:
        storage.write_bytes(output.output_json, to_json_text(figures).encode())
    if output.output_png:
        from open_lm.tokens.histogram import picture

        title = params.shards or " ".join(params.input_files)
        storage.write_bytes(output.output_png, picture(figures.lengths, figures.fill, title if len(title) < 90 else title[:87] + "..."))


def _check(params: StatsParams, output: OutputParams) -> None:
    from open_lm.tokens.tools.tool_files import output_problems

    problems = output_problems({"--output-json": output.output_json, "--output-png": output.output_png}, output.overwrite)
    if bool(params.input_files) == bool(params.shards):
        problems.append("--input-files, --shards: give one of them, texts or shards")
    if params.seq_len < 1:
        problems.append(f"--seq-len {params.seq_len}: give 1 or more")
    if params.num_workers is not None and params.num_workers < 1:
        problems.append(f"--num-workers {params.num_workers}: give 1 or more")
    if problems:
        raise UserError(problems)


def _of_texts(params: StatsParams) -> TextFigures:
    from open_lm.tokenizer import load_tokenizer
    from open_lm.tokens.reading.inputs import list_inputs
    from open_lm.tokens.tools.corpus_stats import TextFigures, TextVisitor
    from open_lm.tokens.tools.survey import survey, workers
    from open_lm.tokens.tools.tool_files import spooled
    from open_lm.tokens.unit import encoder_work

    figures = TextFigures(params.seq_len + 1)
    with tempfile.TemporaryDirectory() as folder:
        files = list_inputs(spooled(params.input_files, folder))
        work = encoder_work(load_tokenizer(params.tokenizer), folder, verify=False)  # no ids are written
        make = functools.partial(TextVisitor, work, figures.length)
        with workers(params.num_workers, work) as executor:
            for visitor in survey(make, files, params.text_key, executor):
                figures.add(visitor.figures)
    return figures


if __name__ == "__main__":
    sys.exit(main())
