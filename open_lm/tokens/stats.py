"""stats.json beside the shards: what was read, what became of it, and with what. Written last: its presence says that a run ended well."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_lm import storage
from open_lm.tokens.unit import UnitResult

STATS = "stats.json"


@dataclass(frozen=True)
class Counts:
    """Of a corpus. Every token is in a sequence or in `dropped_tokens`."""

    input_files: int
    input_bytes: int
    documents_read: int
    documents_refused: int
    characters: int
    utf8_bytes: int
    tokens: int
    """One end of text after each document included; padding not."""
    tokens_without_eot: int
    checked_tokens: int
    sequences: int
    tokens_per_sequence: int
    dropped_tokens: int
    padding_tokens: int
    shards: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each token, ends of text counted: bits per byte = loss / ln 2 / this."""
        return self.utf8_bytes / self.tokens if self.tokens else 0.0

    def assert_whole(self) -> None:
        """Nothing lost, nothing doubled."""
        stored = self.sequences * self.tokens_per_sequence
        assert stored + self.dropped_tokens == self.tokens + self.padding_tokens, f"tokens lost or doubled: {self}"
        assert self.tokens == self.tokens_without_eot + self.documents_read, f"ends of text lost or doubled: {self}"


def add_up(results: Iterable[UnitResult]) -> dict[str, int]:
    """The counts of all units under the names of `Counts`."""
    names = ("documents", "refused", "characters", "utf8_bytes", "tokens", "checked_tokens")
    sums = dict.fromkeys(names, 0)
    for result in results:
        for name in names:
            sums[name] += getattr(result, name)
    return {
        "documents_read": sums["documents"],
        "documents_refused": sums["refused"],
        "characters": sums["characters"],
        "utf8_bytes": sums["utf8_bytes"],
        "tokens": sums["tokens"],
        "tokens_without_eot": sums["tokens"] - sums["documents"],
        "checked_tokens": sums["checked_tokens"],
    }


def write_stats(folder: Path, counts: Counts, more: dict[str, Any]) -> None:
    """Write stats.json: the counts, bytes per token, versions, and `more`."""
    values = {**dataclasses.asdict(counts), "bytes_per_token": counts.bytes_per_token, **more, "versions": _versions()}
    with storage.atomic_write(folder / STATS, "w") as file:
        json.dump(values, file, indent=2)
        file.write("\n")


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    import open_lm

    found = {"open_lm": open_lm.__version__, "python": platform.python_version()}
    for package in ("tokenizers", "gigatoken", "numpy", "orjson", "zstandard"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # gigatoken is optional
            continue
    return found


def table(counts: Counts) -> str:
    """The figures as lines of text."""
    rate = counts.tokens / counts.seconds / 1e6 if counts.seconds else 0.0
    rows: list[tuple[str, str]] = [
        ("documents read", f"{counts.documents_read:,}"),
        ("documents refused", f"{counts.documents_refused:,}"),
        ("characters", f"{counts.characters:,}"),
        ("UTF-8 bytes", f"{counts.utf8_bytes:,}"),
        ("tokens, with ends of text", f"{counts.tokens:,}"),
        ("tokens compared with tokenizers", f"{counts.checked_tokens:,}"),
        (f"sequences of {counts.tokens_per_sequence}", f"{counts.sequences:,}"),
        ("shards", f"{counts.shards:,}"),
        ("tokens dropped at the end", f"{counts.dropped_tokens:,}"),
        ("tokens of padding", f"{counts.padding_tokens:,}"),
        ("bytes a token", f"{counts.bytes_per_token:.3f}"),
        ("seconds", f"{counts.seconds:.1f}"),
        ("Mtok/s", f"{rate:.2f}"),
    ]
    whole = (
        f"{counts.sequences:,} x {counts.tokens_per_sequence} + {counts.dropped_tokens:,} dropped"
        f" = {counts.tokens:,} tokens + {counts.padding_tokens:,} padding"
    )
    return "\n".join([*(f"{name:<32} {value:>16}" for name, value in rows), whole])
