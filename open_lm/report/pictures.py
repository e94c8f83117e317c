"""The pictures of a report: loss, learning rate, tokens per second, scores; PNG files, one line for each run.

Drawn on matplotlib's file-only canvas, without pyplot: no display, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_lm import storage
from open_lm.data.source_names import source_names
from open_lm.report.run import LogStep, RunLog, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers; yellow, which is pale on white, left out
SOFTWARE = "OpenLM report"
"""In pages and pictures: what tells them from other files."""
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*"
_MANY_POINTS = 150
"""Log steps beyond which a curve is shown smoothed, over its pale points."""


def colour(index: int) -> str:
    """Of the line number `index`."""
    return _COLOURS[index % len(_COLOURS)]


def _draw(path: Path, draw: Callable[[Axes], None], height: float = 3.8) -> None:
    """One picture, 7 inches wide at 150 dots an inch."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}):
        figure = Figure(figsize=(7, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.grid(True, color="#e4e4e4", linewidth=0.8)
        draw(axes)
        with storage.atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=150, metadata={"Software": SOFTWARE})


def draw_panels(path: Path, draw: Callable[[list[Axes]], None], panels: int) -> None:
    """One picture of panels above each other that share their horizontal axis."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}):
        figure = Figure(figsize=(8, 0.5 + 2.3 * panels), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
        for one in axes:
            one.grid(True, color="#e4e4e4", linewidth=0.8)
        draw(axes)
        with storage.atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=150, metadata={"Software": SOFTWARE})


def token_unit(largest: float) -> tuple[float, str]:
    """The unit for an axis of tokens, and its name."""
    return next(((u, n) for u, n in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")) if largest >= u), (1.0, ""))


def _tokens_axis(axes: Axes, runs: Sequence[RunLog]) -> None:
    from matplotlib.ticker import FuncFormatter

    largest = max((s.tokens for run in runs for s in run.steps if math.isfinite(s.tokens)), default=0.0)
    unit, name = token_unit(largest)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    axes.set_xlabel(f"training tokens ({name})" if name else "training tokens")
    axes.set_xlim(left=0)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean over `window` values around each, without those that are nan.

    Near the start equally few to both sides, so that a steep beginning stays where it is; near the end what there is.
    """
    result = []
    for i in range(len(values)):
        reach = min(window // 2, i)
        near = [v for v in values[i - reach : i + reach + 1] if math.isfinite(v)]
        result.append(sum(near) / len(near) if near else math.nan)
    return result


def _curve(axes: Axes, run: RunLog, index: int, value: Callable[[LogStep], float], smooth: bool) -> None:
    x, y = [s.tokens for s in run.steps], [value(s) for s in run.steps]
    marker = "." if len(x) <= 30 else ""
    if smooth and len(x) > _MANY_POINTS:
        axes.plot(x, y, color=colour(index), linewidth=0.7, alpha=0.25)
        y = smoothed(y, max(5, len(y) // 40))
    axes.plot(x, y, color=colour(index), linewidth=1.8, marker=marker, label=run.name)


def _resumes(axes: Axes, runs: Sequence[RunLog]) -> None:
    """A dashed line where a run was resumed; the first one named in the legend."""
    label: str | None = "resumed"
    for index, run in enumerate(runs):
        for tokens in run.resumed_at:
            axes.axvline(tokens, color=colour(index), linestyle=(0, (2, 2)), linewidth=1.5, label=label)
            label = None


def _legend(axes: Axes, runs: Sequence[RunLog]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(runs) > 1 or len(labels) > 1:
        axes.legend(handles, labels, frameon=True, framealpha=0.9, edgecolor="none", fontsize=10)


def validation_names(run: RunLog) -> dict[str, str]:
    """What to call each kind of validation, by its `data`: its set where there are several, its averager where there is one."""
    kinds = {v.data: v.averager for v in run.validations}
    sets = {data: data.removesuffix(f" ({averager})") for data, averager in kinds.items()}
    several = list(dict.fromkeys(sets.values()))
    short = dict(zip(several, source_names(several)))
    return {
        data: "validation" + (f" on {short[sets[data]]}" if len(several) > 1 else "") + (f" of {averager}" if averager else "")
        for data, averager in kinds.items()
    }


def draw_loss(path: Path, runs: Sequence[RunLog]) -> None:
    """Training loss, and validation loss as marks."""

    def draw(axes: Axes) -> None:
        for index, run in enumerate(runs):
            _curve(axes, run, index, lambda s: s.loss, smooth=True)
            for number, (data, label) in enumerate(validation_names(run).items()):
                points = [(v.tokens, v.loss) for v in run.validations if v.data == data]
                label = f"{run.name}, {label}" if len(runs) > 1 else label
                style: dict[str, Any] = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 8, "linestyle": "none"}
                axes.plot(*zip(*points), color=colour(index), markeredgecolor="white", zorder=3, label=label, **style)
        _resumes(axes, runs)
        _tokens_axis(axes, runs)
        axes.set_ylabel("loss (nats per token)")
        axes.set_title("Loss", loc="left", fontweight="bold")
        _legend(axes, runs)

    _draw(path, draw, height=4.4)


def draw_learning_rate(path: Path, runs: Sequence[RunLog]) -> None:
    """The learning rate of each log step."""

    def draw(axes: Axes) -> None:
        for index, run in enumerate(runs):
            _curve(axes, run, index, lambda s: s.lr, smooth=False)
        _resumes(axes, runs)
        _tokens_axis(axes, runs)
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        axes.set_ylabel("learning rate")
        axes.set_title("Learning rate", loc="left", fontweight="bold", pad=16)
        _legend(axes, runs)

    _draw(path, draw)


def draw_throughput(path: Path, runs: Sequence[RunLog]) -> None:
    """Tokens per second, of all processes together."""
    from matplotlib.ticker import StrMethodFormatter

    def draw(axes: Axes) -> None:
        for index, run in enumerate(runs):
            _curve(axes, run, index, lambda s: s.tokens_per_second, smooth=True)
        _resumes(axes, runs)
        _tokens_axis(axes, runs)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_ylabel("tokens per second")
        axes.set_title("Speed", loc="left", fontweight="bold")
        _legend(axes, runs)

    _draw(path, draw)


def half_interval(accuracy: float, questions: int) -> float:
    """Half of the 95 % interval of a share of right answers (normal approximation); 0 where the number of questions is unknown."""
    return 1.96 * math.sqrt(max(0.0, accuracy * (1 - accuracy)) / questions) if questions else 0.0


def draw_scores(path: Path, scores: Scores, chance: Mapping[str, float]) -> None:
    """A bar for each task and checkpoint, with its 95 % interval, and a tick at what guessing gives.

    Args:
        chance: by the task's label or full name; others get no tick.
    """
    tasks = list(dict.fromkeys(task for by_task in scores.values() for task in by_task))
    thickness = 0.8 / max(1, len(scores))

    def draw(axes: Axes) -> None:
        for index, (checkpoint, by_task) in enumerate(scores.items()):
            for row, task in enumerate(tasks):
                if task in by_task:
                    score, y = by_task[task], row - 0.4 + thickness * (index + 0.5)
                    label = tail(checkpoint) if row == tasks.index(next(iter(by_task))) else None
                    half = 100 * half_interval(score.accuracy, score.questions)
                    axes.barh(y, 100 * score.accuracy, thickness * 0.86, color=colour(index), alpha=0.85, label=label)
                    axes.errorbar(100 * score.accuracy, y, xerr=half, color="#333333", capsize=3, linewidth=1.2)
                    axes.text(100 * score.accuracy + half + 1.2, y, f"{100 * score.accuracy:.1f}", va="center")
        label = "chance"
        for row, task in enumerate(tasks):
            if (share := chance_of(task, chance)) is not None:
                axes.plot(
                    [100 * share] * 2, [row - 0.45, row + 0.45], color="#D00000", linestyle="--", linewidth=1.8, label=label, zorder=4
                )
                label = ""
        axes.set_yticks(range(len(tasks)), tasks)
        axes.invert_yaxis()
        axes.set_xlim(0, 108)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(False, axis="y")
        axes.set_xlabel("right answers (%); whiskers: 95 % interval")
        axes.set_title("Scores", loc="left", fontweight="bold")
        if len(scores) > 1 or label == "":
            axes.figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=10)

    _draw(path, draw, height=1.9 + len(tasks) * max(0.6, 0.32 * len(scores)) + 0.25 * len(scores))


def tail(text: str, length: int = 56) -> str:
    """The end of a long path, which tells files apart better than its beginning."""
    return text if len(text) <= length else f"…{text[-length:]}"


def chance_of(task: str, chance: Mapping[str, float]) -> float | None:
    """What guessing gives on `<label>/<n>-shot`, None where unknown."""
    return chance.get(task, chance.get(task.rpartition("/")[0]))
