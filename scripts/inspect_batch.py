#!/usr/bin/env python
"""Show what was in a batch of a run: tokens, text, documents; write or check the order of its steps. The work is in open_lm/data."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm import storage  # noqa: E402
from open_lm.params.fields import UserError, parse_topics  # noqa: E402


@dataclass(frozen=True)
class InspectParams:
    """which batch, and what of it"""

    run: str | None = None
    """Run folder, such as logs/NAME, or its url."""
    step: int | None = None
    """Step as the log and metrics.jsonl count it, from 1; any step of the run, made already or not."""
    rank: int = 0
    """Process whose rows are shown, of --world-size."""
    world_size: int = 1
    """Processes that the batch is divided among; 1 shows all of it."""
    slots: tuple[int, ...] = ()
    """Only these slots of the global batch, from 0."""
    text: bool = False
    """Show the decoded text, divided into documents."""
    sources: bool = False
    """Show which documents the tokens come from: file, place in it, tokens of the document."""
    ids: int | None = None
    """Token ids to show of each row, 0 for none. Default: all."""
    steps: str | None = None
    """Steps of an order file as first:end, the end not included. Default with --check-order: from 1 on, as many as the file has."""
    order_file: str | None = None
    """Write the order of --steps to this .npy: [steps, global batch, 3], source, shard of the source, row of the shard."""
    check_order: str | None = None
    """Compare such a .npy with what the run reads, and say the first difference."""
    allow_pipe: bool = False
    """Run the commands of the run's pipe: shards on this machine. They come from the run folder: only where that is yours."""


def _steps(text: str) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit()):
        raise ValueError(f"--steps {text}: give first:end, such as 1:101 for the first 100 steps")
    return int(first), int(end)


def _check(params: InspectParams) -> None:
    problems = [] if params.run else ["--run: missing; give a run folder, such as logs/NAME"]
    if sum(x is not None for x in (params.step, params.order_file, params.check_order)) != 1:
        problems.append("give one of --step, --order-file and --check-order")
    if params.order_file and not params.steps:
        problems.append("--order-file: needs --steps first:end")
    problems += storage.unwritable("--order-file", params.order_file)
    if params.ids is not None and params.ids < 0:
        problems.append(f"--ids {params.ids}: give 0 or more")
    if problems:
        raise UserError(problems)


def _write_order(params: InspectParams) -> int:
    from open_lm.data.inspect import RunData
    from open_lm.data.order_file import write_order

    assert params.run and params.steps and params.order_file
    order = RunData(params.run, params.allow_pipe).order(*_steps(params.steps))
    write_order(params.order_file, order)
    print(f"{params.order_file}: {order.dtype} {list(order.shape)}, source, shard and row of each slot of steps {params.steps}")
    return 0


def _check_order(params: InspectParams) -> int:
    from open_lm.data.inspect import RunData
    from open_lm.data.order_file import first_difference, read_order

    assert params.run and params.check_order
    stored = read_order(params.check_order)
    first, end = _steps(params.steps) if params.steps else (1, 1 + len(stored))
    run = RunData(params.run, params.allow_pipe)
    found = first_difference(stored, run.order(first, end), first)
    if found is None:
        print(f"{params.check_order}: steps {first} to {end - 1} are what the run reads")
        return 0
    (a, b, c), (x, y, z) = found.in_file, found.in_run
    print(f"{params.check_order}: the first difference is in step {found.step}, slot {found.slot}:")
    print(f"  file: row {c} of {run.shard_name(found.step, a, b)} (source {a}, shard {b})")
    print(f"  run:  row {z} of {run.shard_name(found.step, x, y)} (source {x}, shard {y})")
    return 1


def _show(params: InspectParams) -> int:
    from open_lm.data.inspect import batch
    from open_lm.data.inspect_page import Shown, page

    assert params.run and params.step is not None
    which = {"rank": params.rank, "world_size": params.world_size, "slots": params.slots}
    found = batch(params.run, params.step, allow_pipe=params.allow_pipe, **which)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # text of any script, on any terminal
    for line in page(found, Shown(params.ids, params.text, params.sources)):
        print(line)
    return 0


def main() -> int:
    """Exit status 0, 1 for an order that differs, 2 with the problems on stderr."""
    try:
        topics, _ = parse_topics((InspectParams,), description=__doc__)
        params: InspectParams = topics[InspectParams]
        _check(params)
        if params.order_file:
            return _write_order(params)
        status = _check_order(params) if params.check_order else _show(params)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
