"""Text to shards of token sequences, for `--train-data` and `--val-data`.

python datapreprocess/make_2048.py --input-files raw_data/*.jsonl.zst --output-dir preproc_data --num-workers 32 --num-consumers 1
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.params.fields import parse_topics  # noqa: E402
from open_lm.tokens.options import InputOptions, OutputOptions, RunOptions  # noqa: E402


def main() -> int:
    """Returns the exit status: 2 for bad options or input, 1 for a file that can't be read or written, or a worker that died."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")
    try:
        topics, _ = parse_topics((InputOptions, OutputOptions, RunOptions), prog="make_2048.py", description=__doc__)
        from open_lm.tokens.preprocess import preprocess
        from open_lm.tokens.stats import table

        print(table(preprocess(topics[InputOptions], topics[OutputOptions], topics[RunOptions])))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
