"""The command of a training run: `torchrun --nproc-per-node N -m open_lm.main ...`, or `python -m open_lm.main ...` for one process.

Exit codes: 0 finished, now or before; 1 an error while it ran; 2 a mistake that the user can mend, told before anything started;
3 ended by a signal while it trained, 4 by --time-limit, with the state saved; 5 by --max-nonfinite-steps, nothing saved; 6 by the
watchdog; 130 and 143 ended by SIGINT and SIGTERM before it trained, 130 also by a second SIGINT. torchrun itself makes 1 of all but 0,
and says why in its summary; `ending.json` in the run folder says more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from open_lm.command_line import end, end_on_signals

end_on_signals(__name__)

from open_lm.params import UserError, parse_params  # noqa: E402
from open_lm.params.check import TOPICS, validates_only  # noqa: E402
from open_lm.params.fields import given_options  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code."""
    rank = int(os.environ.get("RANK", 0))
    try:
        params, warnings = parse_params(argv)
        from open_lm.run import dry_run, run  # after the options, so that --help and mistakes are answered at once
        from open_lm.train.endings import SIGNALLED
        from open_lm.train.parallel import alone, join_world
        from open_lm.validation_run import run_validation

        if params.ending.dry_run:
            if rank == 0:
                dry_run(params, alone(params.parallel), warnings)
            return 0
        with join_world(params.parallel) as world:
            if validates_only(params.flat()):
                return run_validation(params, world, warnings, given_options(TOPICS, argv))
            code = run(params, world, warnings)
        return end(code, together=code != SIGNALLED) if code else 0  # torchrun had the signal too, ends nobody and waits for all
    except UserError as error:  # every process found the same
        return end(2, "\n".join(f"open_lm: error: {problem}" for problem in error.problems), together=True)
    except (ValueError, OSError) as error:
        return end(1, f"open_lm: error on process {rank}: {error}")


if __name__ == "__main__":
    sys.exit(main())
