#!/usr/bin/env python
"""Make two benchmark tasks from held-out documents: next line, finish the line. The work is in open_lm/tokens/tools/tasks_from_text.py."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm import storage  # noqa: E402
from open_lm.params.fields import UserError, parse_topics  # noqa: E402
from open_lm.tokens.reading.texts import read_texts  # noqa: E402
from open_lm.tokens.tools.tasks_from_text import write_tasks  # noqa: E402


@dataclass(frozen=True)
class TaskParams:
    """tasks"""

    input_files: tuple[str, ...] = ()
    """Files or globs of held-out documents: .jsonl, .json (one object a line) or .txt (one document a file), each also .zst or .gz."""
    text_key: str = "text"
    """Where a line's text is; dots lead into nested objects, as in data.text."""
    output_dir: str | None = None
    """Folder for tasks.yaml, next_line.jsonl and finish_line.jsonl."""
    questions: int = 250
    """Questions of each task, fewer where the documents give no more."""
    seed: int = 0
    """Seed of the choice of questions."""
    overwrite: bool = False
    """Replace tasks that exist."""


def main() -> int:
    """Exit status 0, or 2 with the problems on stderr."""
    try:
        topics, _ = parse_topics((TaskParams,), description=__doc__)
        params: TaskParams = topics[TaskParams]
        missing = [f"--{name.replace('_', '-')}: missing" for name in ("input_files", "output_dir") if not getattr(params, name)]
        missing += storage.unwritable("--output-dir", params.output_dir, folder=True)
        if missing:
            raise UserError(missing)
        assert params.output_dir
        texts = list(read_texts(params.input_files, params.text_key))
        written = write_tasks(texts, params.output_dir, questions=params.questions, seed=params.seed, overwrite=params.overwrite)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    counts = ", ".join(f"{label} {questions:,}" for label, questions in written.questions.items())
    print(f"{written.yaml}: {counts} questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
