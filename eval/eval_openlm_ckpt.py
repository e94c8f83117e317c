#!/usr/bin/env python
"""Score checkpoints on benchmark tasks; the work is in open_lm/evaluation.

cd eval
python eval_openlm_ckpt.py --eval-yaml in_memory_hf_eval.yaml --model open_lm_1b --checkpoint epoch_1.pt --out results.json
python eval_openlm_ckpt.py --backend llm-foundry --build-env ...  # the same on LLM Foundry's own evaluators
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end, end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm.evaluation.command import run_eval  # noqa: E402


def main() -> int:
    """Exit status 0, or 2 with the problems on stderr; with another backend's environment, the status there."""
    try:
        return run_eval()
    except ValueError as error:
        return end(2, str(error), together=True)


if __name__ == "__main__":
    sys.exit(main())
