"""The picture of what a run read: panels over training tokens, each where the run folder tells something for it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from open_lm.report.data import DataView
from open_lm.report.pictures import colour, draw_panels, smoothed, token_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Callable[["Axes", DataView], None]


def panels_of(view: DataView) -> list[Panel]:
    """The panels for which there is something to draw."""
    several, panels = len(view.source_names) > 1, list[Panel]()
    if several and any(step.targets for step in view.steps):
        panels.append(_shares)
    if several and any(step.losses for step in view.steps):
        panels.append(_losses)
    if any(plan.mix and not plan.replacement for plan in view.plans):
        panels.append(_passes)
    if any(step.seconds > 0 and math.isfinite(step.wait) for step in view.steps):
        panels.append(_waiting)
    if view.sum_of("fetched") and view.bytes_used(view.last_step) > 0:
        panels.append(_fetched)
    return panels


def draw_data(path: Path, view: DataView) -> None:
    """Draw the panels, at least one."""
    panels = panels_of(view)
    end = max((s.tokens for s in view.steps if math.isfinite(s.tokens)), default=0.0)
    if _passes in panels:
        end = max(end, view.tokens_after(view.total_steps or 0))
    unit, name = token_unit(end)

    def draw(axes: list[Axes]) -> None:
        for one, panel in zip(axes, panels, strict=True):
            panel(one, view)
            _changes(one, view)
            one.set_xlim(0, end or 1)
            if len(one.get_legend_handles_labels()[1]) > 1:
                one.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
        axes[-1].set_xlabel(f"training tokens ({name})" if name else "training tokens")

    draw_panels(path, draw, len(panels))


def _changes(axes: Axes, view: DataView) -> None:
    """A dotted line where a plan or a batch size begins."""
    for step in {plan.first_step - 1 for plan in view.plans[1:]} | {batch.step for batch in view.batches[1:]}:
        axes.axvline(view.tokens_after(step), color="#555555", linestyle=":", linewidth=1.2)


def _per_source(axes: Axes, view: DataView, value: Callable[[int, str], float]) -> None:
    """A line for each source through `value(index of the log line, name)`, smoothed over many lines, though not over a change of plan."""
    x = [step.tokens for step in view.steps]
    cuts = [bisect.bisect_left([step.step for step in view.steps], plan.first_step) for plan in view.plans[1:]]
    for index, name in enumerate(view.source_names):
        y = [value(i, name) for i in range(len(x))]
        if len(y) > 40:
            axes.plot(x, y, color=colour(index), linewidth=0.6, alpha=0.25)
            parts = [y[low:high] for low, high in zip([0, *cuts], [*cuts, len(y)])]
            y = [one for part in parts for one in smoothed(part, max(5, len(y) // 30))]
        axes.plot(x, y, color=colour(index), linewidth=1.8, marker="." if len(x) <= 30 else "", label=name)


def _shares(axes: Axes, view: DataView) -> None:
    def trained(i: int, name: str) -> float:
        targets = view.steps[i].targets
        plan = next((p for p in reversed(view.plans) if p.first_step <= view.steps[i].step), None)
        if not any(targets.values()) or (plan and name not in (source.name for source in plan.sources)):
            return math.nan
        return 100 * targets.get(name, 0.0) / sum(targets.values())

    _per_source(axes, view, trained)
    for plan in view.plans:
        span = [view.tokens_after(plan.first_step - 1), view.tokens_after(view.step_of(plan.stop_row) - 1)]
        for source in plan.sources:
            index = view.source_names.index(source.name)
            axes.plot(span, [100 * source.share] * 2, color=colour(index), linestyle=(0, (4, 3)), linewidth=1.1)
    axes.plot([], [], color="#555555", linestyle=(0, (4, 3)), linewidth=1.1, label="planned (rows)")
    axes.set_ylim(0, 100)
    axes.set_ylabel("share (%)")
    axes.set_title("Share of each source in the trained targets", loc="left", fontweight="bold")


def _losses(axes: Axes, view: DataView) -> None:
    _per_source(axes, view, lambda i, name: view.steps[i].losses.get(name, math.nan))
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Loss of each source", loc="left", fontweight="bold")


def _passes(axes: Axes, view: DataView) -> None:
    now = view.row_after(view.last_step)
    for plan in view.plans:
        for index, source in enumerate(plan.sources):
            if plan.replacement:
                continue
            ink = colour(view.source_names.index(source.name))
            for low, high, style in ((plan.first_row, min(now, plan.stop_row), "-"), (max(now, plan.first_row), plan.stop_row, ":")):
                if low < high:
                    x = [view.tokens_after(view.step_of(row) - 1) for row in (low, high)]
                    y = [plan.about_rows_of(row)[index] / source.rows for row in (low, high)]
                    label = source.name if style == "-" and plan is view.plans[0] else None
                    axes.plot(x, y, linestyle=style, label=label, color=ink, linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("passes")
    axes.set_title("Passes over each source (dotted: to come)", loc="left", fontweight="bold")


def _waiting(axes: Axes, view: DataView) -> None:
    timed = [s for s in view.steps if s.seconds > 0 and math.isfinite(s.wait)]
    x, y = [s.tokens for s in timed], [100 * s.wait / s.seconds for s in timed]
    axes.fill_between(x, y, color=colour(0), alpha=0.3, linewidth=0)
    axes.plot(x, y, color=colour(0), linewidth=1.2, marker="." if len(x) <= 30 else "")
    axes.set_ylim(0, max(1.0, 1.1 * max(y)))
    axes.set_ylabel("% of the time")
    axes.set_title("Waiting for data", loc="left", fontweight="bold")


def _fetched(axes: Axes, view: DataView) -> None:
    fetched, x, y = 0.0, [], []
    for step in view.steps:
        fetched += step.fetched if math.isfinite(step.fetched) else 0.0
        used = view.bytes_used(step.step)
        if used > 0:
            x.append(step.tokens)
            y.append(fetched / used)
    axes.plot(x, y, color=colour(0), linewidth=1.8, marker="." if len(x) <= 30 else "")
    axes.axhline(1, color="#555555", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("times")
    axes.set_title("Bytes fetched from elsewhere over bytes of the rows read", loc="left", fontweight="bold")
