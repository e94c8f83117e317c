"""`skipped_steps.jsonl`: the steps that updated nothing, each with its loss, its norm, and the rows of its batch."""

from __future__ import annotations

import logging
import math

import torch

from open_lm.train.endings import Ending
from open_lm.train.loop import Nothing, Position
from open_lm.train.run_folder import RunFolder
from open_lm.train.sinks import JsonLines
from open_lm.train.step import StepResult

_Noted = tuple[Position, Position, StepResult]
"""Where the run was before and after a step, and what the step gave."""


class SkippedSteps(Nothing):
    """Reads the device every `every` steps, as the log does, and at the end. On the first process.

    Args:
        folder: of the run; a resumed run drops the lines of the steps that it makes again.
        every: steps.
        start: where the run goes on.
    """

    def __init__(self, folder: RunFolder, every: int, start: Position):
        self.folder, self.every, self.before, self.start = folder, every, start, start
        self.path = folder.path / "skipped_steps.jsonl"
        self.noted: list[_Noted] = []
        self.lines: JsonLines | None = JsonLines(self.path, start.step) if self.path.exists() else None

    def after_step(self, position: Position, result: StepResult) -> None:
        """Note the step; look at those noted where the log reads the device too."""
        self.noted.append((self.before, position, result))
        self.before = position
        if position.step % self.every == 0:
            self._read()

    def after_epoch(self, position: Position) -> None:
        """Look at what is left before it is validated and saved."""
        self._read()

    def before_end(self, position: Position, ending: Ending) -> None:
        """Look at what is left."""
        self._read()

    def close(self) -> None:
        """Close the file."""
        if self.lines:
            self.lines.close()

    def _read(self) -> None:
        noted, self.noted = self.noted, []
        if not noted:
            return
        skipped = torch.stack([result.skipped for _, _, result in noted]).tolist()
        for (before, after, result), left_out in zip(noted, skipped, strict=True):
            if left_out:
                self._write(after.step, (before.sequences, after.sequences), float(result.loss), float(result.grad_norm))

    def _write(self, step: int, rows: tuple[int, int], loss: float, norm: float) -> None:
        why = "spike" if math.isfinite(loss) and math.isfinite(norm) else "not finite"
        # JSON has no NaN: such a number is written as text
        numbers = {name: value if math.isfinite(value) else str(value) for name, value in (("loss", loss), ("grad_norm", norm))}
        self.lines = self.lines or JsonLines(self.path, self.start.step)  # a run without such steps has no such file
        self.lines.write({"step": step, "why": why, **numbers, "first_row": rows[0], "stop_row": rows[1]}, step, "train")
        logging.warning(
            f"Step {step}: {why} (loss {loss:.4g}, gradient norm {norm:.4g}), nothing was updated; its rows: "
            f"scripts/inspect_batch.py --run {self.folder.path} --step {step} --text"
        )
