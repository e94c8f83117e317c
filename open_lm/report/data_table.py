"""What a run read, in words and tables: the same on a page and on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from open_lm.params.fields import counted
from open_lm.report.data import DataStep, DataView, PlanSpan

_BEGINS = 6
"""Beginnings of passes that are named."""
_PIECES = 10


def summary(view: DataView) -> Iterator[str]:
    """Sentences: how far, batches, waiting, bytes, losses, plans."""
    of = f" of {view.total_steps:,}" if view.total_steps is not None else ""
    at = f", {view.steps[-1].tokens:,.0f} tokens" if view.steps else ""
    yield f"step {view.last_step:,}{of}{at}"
    if view.batches:
        sizes = (f"{counted(b.size, 'row')} of {b.seq_len} tokens from step {b.step + 1:,}" for b in view.batches)
        yield f"batches: {', '.join(sizes)}"
    yield from _waiting(view)
    yield from _bytes(view)
    lost = [step.lost for step in view.steps if math.isfinite(step.lost)]
    if lost:
        rows = view.row_after(view.last_step)
        yield f"lost rows: {lost[-1]:,.0f}" + (f" of {rows:,} ({100 * lost[-1] / rows:.2g} %)" if rows else "")
    if not view.plans:
        yield "plan: unknown; neither plans.json nor a run state tells it"


def _waiting(view: DataView) -> Iterator[str]:
    timed = [step for step in view.steps if step.seconds > 0 and math.isfinite(step.wait)]
    if timed:
        wait, seconds = sum(s.wait for s in timed), sum(s.seconds for s in timed)
        worst = max(timed, key=lambda s: s.wait / s.seconds)
        yield (
            f"waiting for data: {100 * wait / seconds:.2g} % of the time ({wait:.1f} of {seconds:,.1f} s), "
            f"at most {100 * worst.wait / worst.seconds:.2g} %, in the log line of step {worst.step:,}"
        )


def _bytes(view: DataView) -> Iterator[str]:
    fetched, used = view.sum_of("fetched"), view.bytes_used(view.last_step)
    if fetched:
        over = f", {fetched / used:.2f} times the {size(used)} that the rows read so far take" if used > 0 else ""
        yield f"fetched from elsewhere: {size(fetched)}{over}"
    elif used > 0:
        yield f"the rows read so far take {size(used)} of the shards; nothing was fetched from elsewhere"


def size(count: float) -> str:
    """Bytes with a unit: 1.2 GB."""
    unit, name = next(((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if count >= u), (1e3, "kB"))
    return f"{count / unit:.3g} {name}"


def plan_title(plan: PlanSpan) -> str:
    """One line about a plan."""
    streams = f", {counted(plan.mix.streams, 'stream')}" if plan.mix else ""
    how = "synthetic tokens" if plan.mix is None else "with replacement" if plan.replacement else "in passes without replacement"
    return f"plan {plan.fingerprint}, from step {plan.first_step:,} (row {plan.first_row:,}) on: {how}{streams}"


PLAN_HEAD = ("source", "shards", "rows", "share", "passes so far", "in all", "later passes begin at step")


def plan_rows(view: DataView, plan: PlanSpan) -> list[tuple[str, ...]]:
    """A row for each source of a plan, as `PLAN_HEAD` says."""
    now = max(view.row_after(view.last_step), plan.first_row)
    so_far, in_all = plan.passes_of(now), plan.passes_of(plan.stop_row)
    rows: list[tuple[str, ...]] = []
    for index, source in enumerate(plan.sources):
        numbers = ("–", "–", "–") if plan.replacement else (f"{so_far[index]:.3g}", f"{in_all[index]:.3g}", _begins(view, plan, index))
        rows.append((source.name, f"{source.shards:,}", f"{source.rows:,}", f"{100 * source.share:.1f} %", *numbers))
    return rows


def _begins(view: DataView, plan: PlanSpan, source: int) -> str:
    """The steps at which the second, third, ... pass begins."""
    steps = [view.step_of(row) for row in plan.begins(source, _BEGINS + 1)]
    return ", ".join(f"{step:,}" for step in steps[:_BEGINS]) + (", ..." if len(steps) > _BEGINS else "") or "–"


def time_table(view: DataView) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the run in up to ten pieces of equally many log lines, oldest first; without columns that nothing is known for."""
    names = view.source_names if len(view.source_names) > 1 else ()
    head = ["steps", *(f"{name} {what}" for name in names for what in ("planned", "trained on", "loss")), "wait", "fetched", "lost rows"]
    count, rows, before = len(view.steps), list[list[str]](), 0
    pieces = min(_PIECES, count)
    for piece in range(pieces):
        steps = view.steps[piece * count // pieces : (piece + 1) * count // pieces]
        rows.append(_time_row(view, before, steps, names))
        before = steps[-1].step
    told = [i for i in range(len(head)) if any(row[i] != "–" for row in rows)]
    return [head[i] for i in told], [[row[i] for i in told] for row in rows]


def _time_row(view: DataView, before: int, steps: Sequence[DataStep], names: Sequence[str]) -> list[str]:
    last = steps[-1]
    cells = [f"{before + 1:,}–{last.step:,}"]
    targets = {name: sum(s.targets.get(name, 0.0) for s in steps) for name in names}
    everything = sum(targets.values())
    for name in names:
        cells += [_share(view.planned_share(name, before, last.step)), _share(targets[name] / everything if everything else math.nan)]
        cells.append(_decimal(_mean_loss(name, steps)))
    timed = [s for s in steps if s.seconds > 0 and math.isfinite(s.wait)]
    seconds = sum(s.seconds for s in timed)
    fetched = sum(s.fetched for s in steps if math.isfinite(s.fetched))
    cells.append(f"{100 * sum(s.wait for s in timed) / seconds:.2g} %" if seconds else "–")
    return [*cells, size(fetched) if fetched else "–", f"{last.lost:,.0f}" if math.isfinite(last.lost) else "–"]


def _mean_loss(name: str, steps: Sequence[DataStep]) -> float:
    """Over the targets of a source; over the lines where these aren't known, as in runs of version 0.2."""
    told = [(s.losses[name], s.targets.get(name, 1.0)) for s in steps if math.isfinite(s.losses.get(name, math.nan))]
    return sum(loss * n for loss, n in told) / sum(n for _, n in told) if told else math.nan


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def _decimal(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def as_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table's lines for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        yield "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()


def as_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The same table turned about, for one with more columns than rows."""
    return [head[0], *(row[0] for row in rows)], [[name, *(row[i] for row in rows)] for i, name in enumerate(head) if i]


def lines(view: DataView) -> Iterator[str]:
    """The whole report for a terminal."""
    yield f"{view.name}"
    for line in summary(view):
        yield f"  {line}"
    for plan in view.plans:
        yield ""
        yield plan_title(plan)
        if plan.sources:
            yield from (f"  {line}" for line in as_text(PLAN_HEAD, plan_rows(view, plan)))
    if view.steps:
        yield ""
        head, rows = time_table(view)
        yield from as_text(*as_columns(head, rows) if len(head) > 8 else (head, rows))
