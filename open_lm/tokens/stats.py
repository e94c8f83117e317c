"""stats.json beside the shards: what was read, what became of it, and with what. Written last: its presence says that a run ended well."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass
from typing import Any


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
    """One end of text after each document included, and begins of text where asked for; padding not."""
    tokens_without_eot: int
    checked_tokens: int
    """Compared with the reference tokenizer."""
    checking_seconds: float
    """Of all workers."""
    worker_seconds: float
    """Of all workers in units, checking included."""
    sequences: int
    tokens_per_sequence: int
    dropped_tokens: int
    """After the last whole sequence of the corpus."""
    padding_tokens: int
    shards: int
    shard_bytes: int
    startup_seconds: float
    """From the first line of this program to the first unit: listing, tokenizer, workers."""
    seconds: float
    """After that. Of the run that ended the job, where it was stopped before."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each token, ends of text counted: bits per byte = loss / ln 2 / this."""
        return self.utf8_bytes / self.tokens if self.tokens else 0.0

    def assert_whole(self) -> None:
        """Nothing lost, nothing doubled."""
        stored = self.sequences * self.tokens_per_sequence
        assert stored + self.dropped_tokens == self.tokens + self.padding_tokens, f"tokens lost or doubled: {self}"
        assert self.tokens == self.tokens_without_eot + self.documents_read, f"ends of text lost or doubled: {self}"


def to_json(counts: Counts, more: dict[str, Any]) -> bytes:
    """stats.json: the counts, bytes per token, versions, and `more`."""
    values = {**dataclasses.asdict(counts), "bytes_per_token": counts.bytes_per_token, **more, "versions": _versions()}
    return json.dumps(values, indent=2).encode() + b"\n"


def from_json(data: bytes) -> tuple[Counts, dict[str, Any]]:
    """The counts, and everything in the file. Raises ValueError for a file of another kind."""
    try:
        values = json.loads(data)
        return Counts(**{field.name: values[field.name] for field in dataclasses.fields(Counts)}), values
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is no stats.json of this program: {error!r}") from None


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
    seconds = max(counts.seconds, 1e-9)
    checked = counts.checking_seconds / counts.worker_seconds if counts.worker_seconds else 0.0
    rows: list[tuple[str, str]] = [
        ("input files", f"{counts.input_files:,}"),
        ("documents read", f"{counts.documents_read:,}"),
        ("documents refused", f"{counts.documents_refused:,}"),
        ("characters", f"{counts.characters:,}"),
        ("UTF-8 bytes", f"{counts.utf8_bytes:,}"),
        ("tokens, with ends of text", f"{counts.tokens:,}"),
        ("tokens compared with tokenizers", f"{counts.checked_tokens:,}"),
        ("share of the work for that", f"{checked:.1%}"),
        (f"sequences of {counts.tokens_per_sequence}", f"{counts.sequences:,}"),
        ("shards", f"{counts.shards:,}"),
        ("bytes of shards", f"{counts.shard_bytes:,}"),
        ("tokens dropped at the end", f"{counts.dropped_tokens:,}"),
        ("tokens of padding", f"{counts.padding_tokens:,}"),
        ("bytes a token", f"{counts.bytes_per_token:.3f}"),
        ("seconds to start", f"{counts.startup_seconds:.1f}"),
        ("seconds of work", f"{counts.seconds:.1f}"),
        ("Mtok/s", f"{counts.tokens / seconds / 1e6:.2f}"),
        ("MB/s of text", f"{counts.utf8_bytes / seconds / 1e6:.1f}"),
    ]
    whole = (
        f"{counts.sequences:,} x {counts.tokens_per_sequence} + {counts.dropped_tokens:,} dropped"
        f" = {counts.tokens:,} tokens + {counts.padding_tokens:,} padding"
    )
    return "\n".join([*(f"{name:<32} {value:>16}" for name, value in rows), whole])
