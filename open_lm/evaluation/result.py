"""What one task says of one model."""

from __future__ import annotations

from dataclasses import dataclass

from open_lm.params.fields import counted


@dataclass(frozen=True)
class Result:
    """What one task says of one model."""

    accuracy: float
    """Share of questions answered rightly."""
    questions: int
    seconds: float
    """Wall time, reading and tokenising included."""
    inputs: str = ""
    """Hash of what decides it: checkpoint, task, data and options. "" where it is not kept for another start of the command."""


def shots_given(asked: int, rows: int) -> int:
    """Examples that a question gets: a data set has no more than its other rows."""
    return min(asked, rows - 1)


def notice(name: str, asked: int, rows: int, cut: int, questions: int, max_seq_len: int) -> str:
    """What a score's name doesn't say, in one line: examples that are lacking, questions that were cut; nothing where all is whole."""
    said = []
    if (given := shots_given(asked, rows)) < asked:
        there = f"there {'is' if rows == 1 else 'are'} {counted(rows, 'row')}"
        said.append(f"{counted(given, 'example')} before a question in place of {asked}, since {there}")
    if cut:
        said.append(f"{cut} of {questions} questions lose their left end to max_seq_len {max_seq_len}")
    return f"{name}: {'; '.join(said)}" if said else ""
