#!/usr/bin/env python
"""Results of several evaluations side by side; the work is in open_lm/evaluation/compare.py.

python eval/compare.py a.json b.json --reference OpenLM-1B --out table.md table.png
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm.evaluation.compare import run_compare  # noqa: E402


def main() -> int:
    """Exit status 0, or 2 with the problems on stderr."""
    try:
        run_compare(sys.argv[1:])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
