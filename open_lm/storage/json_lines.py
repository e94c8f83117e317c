"""Files of one JSON value a line, which a run adds to. Strict JSON: a number that is not finite is null."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from open_lm.storage.local import atomic_write, tell_full_disk


def add_line(path: Path, value: Any) -> None:
    """Add a value."""
    with tell_full_disk(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(value), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[Any]:
    """The values, none where there is no file; a line that isn't JSON is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def drop_after(path: Path, start_step: int, others_stay: bool = True) -> None:
    """Remove the lines of later steps, which a resumed run makes again, and what isn't JSON, such as a half-written last line.

    A line is an object with `step`, or a list of them.

    Args:
        others_stay: lines that tell no step.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _stays(line, path, start_step, others_stay)]
    if kept != lines:
        with atomic_write(path, "w") as file:
            file.writelines(kept)


def _stays(line: str, path: Path, start_step: int, others_stay: bool) -> bool:
    try:
        told = json.loads(line)
    except ValueError:
        logging.warning(f"{path}: dropped a line that is no JSON")
        return False
    try:
        return int((told[0] if isinstance(told, list) else told)["step"]) <= start_step
    except (LookupError, TypeError, ValueError):
        return others_stay
