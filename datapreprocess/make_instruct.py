#!/usr/bin/env python
"""Conversations, prompts and responses to shards with a loss mask, for `--train-data`. The work is in open_lm/tokens/instruct/command.py.

python datapreprocess/make_instruct.py --input-files chats/*.jsonl.zst --tokenizer my_tokenizer/ --output-dir instruct_data
"""

from __future__ import annotations

import errno
import logging
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.params.fields import parse_topics  # noqa: E402
from open_lm.tokens.instruct.options import (  # noqa: E402
    InstructOptions,
    InstructOutput,
    InstructRun,
    RecordOptions,
    TemplateOptions,
)


class Stopped(BaseException):
    """SIGTERM or SIGINT."""


def _stop(number: int, frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # a second one would cut the tidying short
    raise Stopped(number)


def main() -> int:
    """Exit status 0; 2 for bad options or input; 1 for files that can't be read or written, or killed workers; 128 + n for a signal."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")
    topics = (RecordOptions, TemplateOptions, InstructOutput, InstructRun)
    try:
        found, _ = parse_topics(topics, prog="make_instruct.py", description=__doc__)
        from open_lm.tokens.instruct.command import make_instruct

        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, _stop)
        print(make_instruct(InstructOptions(*(found[topic] for topic in topics))))
    except Stopped as stopped:
        print(f"stopped by {signal.Signals(stopped.args[0]).name}; the same command goes on from here", file=sys.stderr)
        return 128 + int(stopped.args[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        remedy = "; make room and give the same command again, it goes on from here" if error.errno == errno.ENOSPC else ""
        print(f"{error}{remedy}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
