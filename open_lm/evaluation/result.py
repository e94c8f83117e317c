"""What one task says of one model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What one task says of one model."""

    accuracy: float
    """Share of questions answered rightly."""
    questions: int
    seconds: float
    """Wall time, reading and tokenising included."""
