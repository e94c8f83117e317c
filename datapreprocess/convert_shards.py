"""Shards of one format (txt, json, json.gz, npy) to another: the same sequences in the same order.

python datapreprocess/convert_shards.py --input-dir preproc_data/2048-v1 --output-dir preproc_npy/2048-v1 --format npy
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm.params.fields import parse_topics  # noqa: E402
from open_lm.shards.convert import ConvertOptions, convert  # noqa: E402


def main() -> int:
    """Returns the exit status: 2 for bad options or input, 1 for a file that can't be read or written, or a worker that died."""
    try:
        topics, _ = parse_topics((ConvertOptions,), prog="convert_shards.py", description=__doc__)
        print(convert(topics[ConvertOptions]))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
