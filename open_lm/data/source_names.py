"""Short names for sources, from the patterns that the user gave: for metrics, unique within a run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_LONGEST = 40


def source_names(patterns: Sequence[str]) -> tuple[str, ...]:
    """What tells each pattern from the others: `/data/dclm/1-v1/shard-*.tar` and `/data/code/1-v1/shard-*.tar` are `dclm` and `code`.

    Names hold letters, digits, `_`, `.` and `-`, at most 40 of them and a number where they would be equal.
    """
    split = [re.sub(r"^\w+://", "", pattern).split("/") for pattern in patterns]
    start = _common(split)
    rest = [parts[start:] for parts in split]
    end = _common([parts[::-1] for parts in rest])
    names: list[str] = []
    for parts, whole in zip(rest, split):
        base = _clean("-".join(parts[: len(parts) - end])) or _clean(whole[-1]) or "source"
        name, count = base, 1
        while name in names:
            count += 1
            name = f"{base}-{count}"
        names.append(name)
    return tuple(names)


def _common(lists: Sequence[Sequence[str]]) -> int:
    """Items that all lists begin with, of two or more."""
    if len(lists) < 2:
        return 0
    same = itertools.takewhile(lambda items: len(set(items)) == 1, zip(*lists))
    return sum(1 for _ in same)


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", re.sub(r"\.(tar|jsonl)\b", "", text)).strip("_.-")[:_LONGEST]
