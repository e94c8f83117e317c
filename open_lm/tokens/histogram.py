"""The picture of a corpus: how long its documents are, and how its sequences are filled. A PNG file.

Left, over document lengths on a logarithmic scale: the share of the documents, and the share of the tokens that they hold. Right: from
how many documents the tokens of a sequence come. Drawn on matplotlib's file-only canvas, without pyplot: no display, no global state.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from open_lm.params.fields import counted
from open_lm.tokens.lengths import EDGES, Lengths
from open_lm.tokens.stats import Counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOCUMENTS, _TOKENS, _SEQUENCES, _LINE = "#0072B2", "#D55E00", "#009E73", "#444444"
_BINS_AT_MOST = 60
_EXACT_COUNTS = 8


@dataclass(frozen=True)
class Fill:
    """How sequences are filled.

    Args:
        length: tokens of a sequence.
        tokens, padding: positions that hold tokens of documents, and others.
        documents: of each sequence, how many documents have tokens in it, where that is known.
    """

    length: int
    tokens: int
    padding: int = 0
    documents: Lengths | None = None

    @property
    def ratio(self) -> float:
        """Share of the positions that hold tokens of documents; 0 without positions."""
        return self.tokens / (self.tokens + self.padding) if self.tokens else 0.0


def draw(lengths: Lengths, counts: Counts, documents: Lengths | None = None) -> bytes:
    """The picture of some shards, a PNG.

    Args:
        lengths: of the documents, in tokens.
        documents: of each sequence, how many documents have tokens in it; without it, the picture has its left half only.
    """
    fill = Fill(counts.tokens_per_sequence, counts.tokens - counts.dropped_tokens, counts.padding_tokens, documents)
    return picture(
        lengths,
        fill,
        f"{counted(counts.shards, 'shard')}, {counted(counts.sequences, 'sequence')} of {counts.tokens_per_sequence:,} tokens",
    )


def picture(lengths: Lengths, fill: Fill | None, title: str) -> bytes:
    """The PNG: document lengths, with the length of a sequence where `fill` says it, and the documents of sequences where it knows them."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    both = fill is not None and fill.documents is not None
    with rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}):
        figure = Figure(figsize=(12 if both else 7.5, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, *right = figure.subplots(1, 2 if both else 1, width_ratios=(3, 2) if both else None, squeeze=False)[0]
        _draw_lengths(left, lengths, fill)
        if fill is not None and fill.documents is not None:
            _draw_fill(right[0], fill, fill.documents)
        figure.suptitle(title, x=0.012, ha="left", fontweight="bold")
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()


def merged_bins(lengths: Lengths) -> list[tuple[int, int, int]]:
    """The bins from the shortest to the longest, half octaves or more where quarters would be too many to draw."""
    bins = {low: count for low, _, count in lengths.bins()}
    if not bins:
        return []
    first, last = EDGES.index(min(bins)), EDGES.index(max(bins))
    step = 1
    while (last - first) // step >= _BINS_AT_MOST:
        step *= 2
    starts = range(first // step * step, last + 1, step)
    return [(EDGES[i], EDGES[i + step], sum(bins.get(edge, 0) for edge in EDGES[i : i + step])) for i in starts]


def _draw_lengths(axes: Axes, lengths: Lengths, fill: Fill | None) -> None:
    bins = merged_bins(lengths)
    counts = np.array([count for _, _, count in bins], float)
    inside = counts * [(low + high - 1) / 2 for low, high, _ in bins]  # the bin's own sum is not kept: its middle stands for it
    edges = np.array([*(low for low, _, _ in bins), bins[-1][1] if bins else 1], float)
    edges = np.maximum(edges, 0.7)  # where empty documents are shown
    for values, colour, label in ((counts, _DOCUMENTS, "of the documents"), (inside, _TOKENS, "of the tokens")):
        shares = 100 * values / max(values.sum(), 1)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.45)
        axes.stairs(shares, edges, color=colour, linewidth=1.3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.2 * max(axes.get_ylim()[1] / 1.05, 1))  # room above the bars for the words
    axes.margins(x=0.02)
    _plain_powers(axes)
    if fill is not None:
        style: dict[str, Any] = {"color": _LINE, "linestyle": (0, (3, 2)), "linewidth": 1.2}
        axes.axvline(fill.length, ymax=0.88, label=f"a sequence: {fill.length:,} tokens", **style)
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set(xlabel="tokens in a document", ylabel="share in %")
    axes.legend(frameon=False, loc="upper left", fontsize=9.5, ncols=3, handlelength=1.4, columnspacing=1.4)
    facts = f"{lengths.number:,} documents, {lengths.total:,} tokens · median {_plain(lengths.quantile(0.5))}, mean {_plain(lengths.mean)}"
    axes.set_title(facts, loc="left", fontsize=10.5)


def _draw_fill(axes: Axes, fill: Fill, documents: Lengths) -> None:
    counts = [(_range(low, high), count) for low, high, count in _few_bins(documents)]
    total = max(documents.number, 1)
    shares = [100 * count / total for _, count in counts]
    bars = axes.bar(range(len(counts)), shares, color=_SEQUENCES, alpha=0.75, width=0.85)
    axes.bar_label(bars, [_percent(share) for share in shares], padding=2, fontsize=9, color=_LINE)
    crowded = max((len(name) for name, _ in counts), default=0) * len(counts) > 42
    axes.set_xticks(range(len(counts)), [name for name, _ in counts], rotation=45 if crowded else 0, ha="right" if crowded else "center")
    axes.margins(y=0.1)
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set(xlabel="documents with tokens in a sequence", ylabel="share of the sequences in %")
    ratio = f"{100 * fill.ratio:.2f}" if fill.padding else "100"
    axes.set_title(f"{documents.number:,} sequences, {ratio} % of their positions filled", loc="left", fontsize=10.5)


def _few_bins(documents: Lengths) -> list[tuple[int, int, int]]:
    """One bin for each count up to 8, octaves beyond."""
    found: dict[int, tuple[int, int, int]] = {}
    for low, high, count in documents.bins():
        start, stop = (low, high) if low < _EXACT_COUNTS else (1 << (low.bit_length() - 1), 1 << low.bit_length())
        found[start] = (start, stop, found.get(start, (0, 0, 0))[2] + count)
    return [found[start] for start in sorted(found)]


def _plain_powers(axes: Axes) -> None:
    """512 and 64 Ki instead of 2^9 and 2^16."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=14))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _binary(value)))
    axes.xaxis.set_minor_locator(LogLocator(base=2, numticks=80))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _binary(value: float) -> str:
    for unit, name in ((1 << 30, " Gi"), (1 << 20, " Mi"), (1 << 10, " Ki")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _range(low: int, high: int) -> str:
    return f"{low}" if high == low + 1 else f"{low}–{high - 1}"


def _percent(share: float) -> str:
    return f"{share:.0f}" if share >= 9.95 else f"{share:.1f}" if share >= 0.05 else "<0.1" if share else "0"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
