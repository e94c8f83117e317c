#!/usr/bin/env python
"""Conversations, prompts and responses to shards with a loss mask, for `--train-data`. The work is in open_lm/tokens/instruct/command.py.

python datapreprocess/make_instruct.py --input-files chats/*.jsonl.zst --tokenizer my_tokenizer/ --output-dir instruct_data
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__, "; the same command goes on from here")

from open_lm.params.fields import parse_topics  # noqa: E402
from open_lm.tokens.instruct.options import (  # noqa: E402
    InstructOptions,
    InstructOutput,
    InstructRun,
    RecordOptions,
    TemplateOptions,
)


def main() -> int:
    """Exit status 0; 2 for bad options or input; 1 for files that can't be read or written, or killed workers; 128 + n for a signal."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")
    topics = (RecordOptions, TemplateOptions, InstructOutput, InstructRun)
    try:
        found, _ = parse_topics(topics, prog="make_instruct.py", description=__doc__)
        from open_lm.tokens.instruct.command import make_instruct

        print(make_instruct(InstructOptions(*(found[topic] for topic in topics))))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
