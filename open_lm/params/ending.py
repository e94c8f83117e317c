"""Options of how a run ends before its end, what it leaves out, and what it would do."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class EndingParams:
    """endings and bad steps"""

    time_limit: str | None = None
    """Save the state and end after this time from the start of the launcher: hours, HH:MM, HH:MM:SS or D-HH:MM:SS. Leave room for two
    steps and a save before the limit of the machine."""
    max_nonfinite_steps: int = 10
    """End the run after so many steps in a row whose loss or gradient is not finite (none of them updates anything); 0 never ends it."""
    skip_spikes: float | None = None
    """Leave out the update of a step whose loss or gradient norm is more than this many standard deviations above the mean of the last
    128 steps; 6 is a usual value. Default: only steps that are not finite are left out."""
    watchdog_minutes: float = 60.0
    """End the run with the stacks of all processes when for so long no step was made, and nothing validated or scored beside it; 0 for no
    watchdog."""
    dry_run: bool = False
    """Print the plan of the run and draw its schedule; write nothing."""


_TIME = re.compile(r"(?:(?:(\d+)-)?(\d+):([0-5]?\d)(?::([0-5]?\d))?)|(\d+(?:\.\d*)?|\.\d+)")


def seconds_of(text: str) -> float:
    """Seconds of a --time-limit. Raises ValueError for what is no time."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"--time-limit {text}: give hours, HH:MM, HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds, decimal = found.groups()
    if decimal is not None:
        return float(decimal) * 3600
    return ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds or 0)
