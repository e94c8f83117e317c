"""From runs of readers to figures and tables. Pure: dictionaries in, dictionaries and text out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

RATIOS = (
    ("txt / webdataset's txt, OpenLM's way", "ours txt", "webdataset txt", 20.0),
    ("json.gz / webdataset's txt, OpenLM's way", "ours json.gz", "webdataset txt", 20.0),
    ("json.gz / webdataset's json.gz", "ours json.gz", "webdataset json.gz", 5.0),
    ("npy / memory map", "ours npy", "memory map", 0.5),
    ("npy / MDS", "ours npy", "MDS", None),
)
NPY_RATE = 50.0
"""Mtok/s of a core that npy shall reach."""
Runs = Mapping[str, Sequence[Mapping[str, float]]]
"""By reader: `seconds` and `tokens` of each run."""


def rate(runs: Sequence[Mapping[str, float]]) -> float:
    """Mtok/s, median."""
    return statistics.median(run["tokens"] / run["seconds"] for run in runs) / 1e6


def ratios(runs: Runs) -> dict[str, dict[str, float | None]]:
    """How many times as fast we are, by median rates and, within rounds, the median of the ratios; with the target."""
    found = {}
    for name, ours, theirs, target in RATIOS:
        if runs.get(ours) and runs.get(theirs):
            pairs = [rate([a]) / rate([b]) for a, b in zip(runs[ours], runs[theirs], strict=True)]
            medians = round(rate(runs[ours]) / rate(runs[theirs]), 2)
            found[name] = {"of_medians": medians, "median_of_rounds": round(statistics.median(pairs), 2), "target": target}
    return found


def speed_table(runs: Runs) -> str:
    """Mtok/s of a core, tensors of int64."""
    lines = [f"{'one core':<24} {'Mtok/s':>8}   every run"]
    for name, some in runs.items():
        lines.append(f"{name:<24} {rate(some):8.2f}   {' '.join(f'{rate([run]):.2f}' for run in some)}")
    return "\n".join(lines)


def ratio_table(found: Mapping[str, Mapping[str, float | None]]) -> str:
    """We over the peers."""
    lines = [f"{'times as fast':<44} {'medians':>8} {'rounds':>8} {'target':>7}"]
    for name, one in found.items():
        target = "" if one["target"] is None else f"{one['target']:g}x"
        lines.append(f"{name:<44} {one['of_medians']:7.2f}x {one['median_of_rounds']:7.2f}x {target:>7}")
    return "\n".join(lines)


def wait_share(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """From the lines of a `metrics.jsonl`, the first one left out: seconds of the steps, and of waiting for the loader within them."""
    tokens = [line["tokens"] for line in metrics]
    count = metrics[-1]["step"] - metrics[0]["step"]
    times = [(b - a) / line["tokens_per_second"] for a, b, line in zip(tokens[:-1], tokens[1:], metrics[1:], strict=True)]
    waits = [line["data_wait_seconds"] for line in metrics[1:]]
    return {
        "steps": count,
        "step_ms": round(1e3 * sum(times) / count, 2),
        "wait_ms": round(1e3 * sum(waits) / count, 3),
        "wait_percent": round(100 * sum(waits) / sum(times), 3),
    }


def wait_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Of each model."""
    lines = [f"{'training':<34} {'steps':>6} {'step ms':>9} {'wait ms':>8} {'wait %':>7}"]
    for name, one in found.items():
        lines.append(f"{name:<34} {one['steps']:6} {one['step_ms']:9.2f} {one['wait_ms']:8.3f} {one['wait_percent']:7.3f}")
    return "\n".join(lines)


def start_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Time to the first batch."""
    lines = [f"{'shards':>8} {'step':>9} {'open ms':>8} {'batch ms':>9}"]
    for one in found:
        lines.append(f"{one['shards']:8,} {one['step']:9,} {one['open_ms']:8.1f} {one['batch_ms']:9.1f}")
    return "\n".join(lines)


def memory_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Of one worker, beyond what it shares with its training process."""
    lines = [f"{'worker reads':<10} {'shards':>8} {'streams':>8} {'MB':>7}"]
    for one in found:
        lines.append(f"{one['format']:<12} {one['shards']:8,} {one['streams']:8,} {one['worker_mb']:7.1f}")
    return "\n".join(lines)
