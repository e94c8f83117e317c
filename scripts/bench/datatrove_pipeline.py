"""datatrove's tokenizer pipeline over a folder, JsonlReader to DocumentTokenizer as in its examples; run by datatrove's environment.

datatrove_pipeline.py INPUT OUTPUT TOKENIZER EOT TASKS prints {"begun": s, "ended": s} of the machine's monotonic clock: from the
moment when the first worker has its tokenizer to the end of the last task. Documents are shuffled inside each task's file (its default).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer


class Ready:
    """A step before the reader: loads the tokenizer, and notes when that was done."""

    def __init__(self, notes: str, tokenizing: DocumentTokenizer):
        self.notes, self.tokenizing = notes, tokenizing

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        self.tokenizing.tokenizer.token_to_id("a")
        Path(self.notes, f"begun-{rank}").write_text(str(time.monotonic()))


class Done:
    """The last step: notes when it was reached."""

    def __init__(self, notes: str):
        self.notes = notes

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        Path(self.notes, f"ended-{rank}").write_text(str(time.monotonic()))


def main(inputs: str, output: str, tokenizer: str, eot: str, tasks: str) -> None:
    notes = Path(output) / "notes"
    notes.mkdir(parents=True)
    tokenizing = DocumentTokenizer(f"{output}/tokens", tokenizer_name_or_path=tokenizer, eos_token=eot, seed=0)
    steps = [Ready(str(notes), tokenizing), JsonlReader(inputs, glob_pattern="*.jsonl.zst"), tokenizing, Done(str(notes))]
    LocalPipelineExecutor(steps, tasks=int(tasks), workers=int(tasks), logging_dir=f"{output}/logs").run()
    begun = [float(file.read_text()) for file in notes.glob("begun-*")]
    ended = [float(file.read_text()) for file in notes.glob("ended-*")]
    print(json.dumps({"begun": min(begun), "ended": max(ended)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
