#!/usr/bin/env python
"""Text to shards of token sequences, for `--train-data` and `--val-data`. The work is in open_lm/tokens/preprocess.py.

python datapreprocess/make_2048.py --input-files raw_data/*.jsonl.zst --output-dir preproc_data --num-workers 32 --num-consumers 1
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__, "; the same command goes on from here")

from open_lm.params.fields import parse_topics  # noqa: E402
from open_lm.tokens.options import InputOptions, Options, OutputOptions, RunOptions, TokenizerOptions  # noqa: E402


def main() -> int:
    """Exit status 0; 2 for bad options or input; 1 for files that can't be read or written, or killed workers; 128 + n for a signal."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")
    topics = (InputOptions, TokenizerOptions, OutputOptions, RunOptions)
    try:
        found, _ = parse_topics(topics, prog="make_2048.py", description=__doc__)
        from open_lm.tokens.preprocess import preprocess
        from open_lm.tokens.stats import table

        counts = preprocess(Options(*(found[topic] for topic in topics)))
        if counts is not None:
            print(table(counts))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
