"""From runs of the preprocessor and its peers to figures and tables. Pure: dictionaries of seconds in, dictionaries and text out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.bench.process_watch import Sample

FORMATS = ("txt", "npy")
TARGETS = {"hf txt": 15.0, "hf npy": 25.0, "datatrove txt": 5.0, "datatrove npy": 5.0}
"""Times that our work is to be shorter (docs/benchmarks.md)."""
Runs = Mapping[str, Sequence[Mapping[str, float]]]
"""By the name of who ran, such as `ours txt`: seconds of each run by name."""


def median(runs: Sequence[Mapping[str, float]], what: str) -> float:
    """Of one kind of seconds over runs."""
    return statistics.median(run[what] for run in runs)


def ratios(runs: Runs) -> dict[str, dict[str, float]]:
    """How many times longer each peer takes than we, by median work seconds and by wall clock."""
    found = {}
    for fmt in FORMATS:
        for peer, name in ((f"hf {fmt}", f"hf {fmt}"), ("datatrove", f"datatrove {fmt}")):
            ours, theirs = runs.get(f"ours {fmt}"), runs.get(peer)
            if ours and theirs:
                times = {what: round(median(theirs, what) / median(ours, what), 2) for what in ("work_seconds", "wall_seconds")}
                found[name] = {**times, "target": TARGETS[name]}
    return found


def budget(fmt: str, cores: int, ours: Sequence[Mapping[str, float]], parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Core seconds of our work, medians: the unavoidable parts, and what the rest is.

    Args:
        ours: runs of make_2048 in this format.
        parts: runs of unavoidable_parts.py.
    """
    work, writing = median(ours, "work_seconds"), median(ours, "writing_seconds")
    units, checking = median(ours, "worker_seconds"), median(ours, "checking_seconds")
    needed = {name: median(parts, name) for name in ("decompress", "parse", "tokenize", f"write {fmt}")}
    reading = sum(needed.values()) - needed[f"write {fmt}"]
    rest = {
        "checking against tokenizers": checking,
        "units beyond that: packing, spilling, counting": units - checking - reading,
        "first stage, cores waiting": (work - writing) * cores - units,
        "second stage beyond writing: gathering, provenance, flushing, waiting": writing * cores - needed[f"write {fmt}"],
    }
    total, unavoidable = work * cores, sum(needed.values())
    figures = {**needed, "unavoidable": unavoidable, **rest, "whole": total}
    return {**{name: round(seconds, 3) for name, seconds in figures.items()}, "whole / unavoidable": round(total / unavoidable, 2)}


def tenths(samples: Sequence[Sample], begin: float, end: float, written: bool, text_bytes: int) -> list[float]:
    """MB/s of text in each tenth of a stage's time, from the bytes read or written in it.

    Args:
        begin, end: of the stage, on the clock of the samples.
        written: the stage's progress shows in what it writes, not in what it reads.
        text_bytes: that the whole stage goes through.
    """
    times = [sample.time for sample in samples]
    bytes_so_far = [sample.written if written else sample.read for sample in samples]
    at = np.interp(np.linspace(begin, end, 11), times, bytes_so_far)
    share = np.diff(at) / max(at[-1] - at[0], 1)
    return [round(float(part) * text_bytes / ((end - begin) / 10) / 1e6, 1) for part in share]


def speed_table(runs: Runs, text_bytes: int, tokens: int) -> str:
    """Medians, and the work of every run. Rest: imports before the start-up's clock, the picture and other reports after the work."""
    lines = [f"{'':<12} {'work s':>8} {'MB/s':>7} {'Mtok/s':>7} {'start-up s':>10} {'rest s':>7} {'wall s':>7}   work of every run"]
    for name, some in runs.items():
        work, startup, wall = (median(some, f"{what}_seconds") for what in ("work", "startup", "wall"))
        every = " ".join(f"{run['work_seconds']:.2f}" for run in some)
        rates = f"{text_bytes / work / 1e6:7.1f} {tokens / work / 1e6:7.2f}"
        lines.append(f"{name:<12} {work:8.2f} {rates} {startup:10.2f} {wall - work - startup:7.2f} {wall:7.2f}   {every}")
    return "\n".join(lines)


def ratio_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Peers' seconds over ours."""
    lines = [f"{'peer / ours':<16} {'work':>7} {'target':>7} {'wall':>7}"]
    for name, times in found.items():
        lines.append(f"{name:<16} {times['work_seconds']:6.1f}x {times['target']:6.0f}x {times['wall_seconds']:6.1f}x")
    return "\n".join(lines)


def budget_table(fmt: str, figures: Mapping[str, float], text_bytes: int) -> str:
    """Core seconds and MB/s of a core."""
    lines = [f"{fmt}: where the core seconds go{'':<45} {'core s':>8} {'MB/s':>8}"]
    for name, seconds in figures.items():
        if name != "whole / unavoidable":
            rate = f"{text_bytes / seconds / 1e6:8.0f}" if seconds > 0 else f"{'-':>8}"
            lines.append(f"  {name:<70} {seconds:8.2f} {rate}")
    return "\n".join([*lines, f"  the whole is {figures['whole / unavoidable']:.2f} times the sum of its unavoidable parts"])


def memory_table(fmt: str, found: Mapping[str, Any]) -> str:
    """Peak and steadiness of one long run."""
    shares = " + ".join(f"{size:.0f}" for size in found["peak_mb_of_each_process"])
    lines = [
        f"{fmt}, {found['text_mb']:.0f} MB of text: peak {found['peak_mb']:.0f} MB of all processes ({shares}),"
        f" limit {found['limit_mb']:.0f} MB",
        f"  work {found['work_seconds']:.1f} s, {found['mb_per_second']:.1f} MB/s",
    ]
    for stage in ("tokenizing", "writing"):
        rates = found[f"{stage}_mb_per_second"]
        lines.append(f"  {stage}, MB/s in each tenth of its time: {' '.join(f'{rate:.0f}' for rate in rates)}")
    return "\n".join(lines)
