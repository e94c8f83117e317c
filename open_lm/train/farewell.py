"""What a run leaves when it ends: its last line, with the command that goes on, and `ending.json` for scripts and restarts."""

from __future__ import annotations

import json
import logging

from open_lm import storage
from open_lm.command_line import tell_launcher
from open_lm.params.fields import counted
from open_lm.train.endings import FINISHED, NOT_FINITE, Ending
from open_lm.train.launcher import launcher, next_command, was_ours
from open_lm.train.loop import Position
from open_lm.train.run_folder import RunFolder

FILE = "ending.json"


def leave(folder: RunFolder, ending: Ending, end: Position) -> None:
    """Write the record, then the last line of the log. On the first process."""
    command = next_command(folder.name)
    told = {"why": ending.why, "exit_code": ending.exit_code, "step": end.step, "tokens": end.tokens, "state_saved": ending.saves}
    with storage.atomic_write(folder.path / FILE, "w") as file:
        json.dump({**told, "next": None if ending is FINISHED else command, "launcher": launcher()}, file, indent=1)
    if ending is FINISHED:
        logging.info(f"Finished: {counted(end.step, 'step')}, {end.tokens} tokens. Weights and run states: {folder.checkpoints}")
        return
    words = f"Ended at step {end.step} ({ending.why}), state saved. To go on: {command}"
    if ending.exit_code == NOT_FINITE:
        words = (
            f"Ended at step {end.step} ({ending.why}); nothing saved, the last whole checkpoint stands. The batches: skipped_steps.jsonl. "
            f"To go on from the checkpoint, with a lower --lr or --skip-spikes 6: {command}"
        )
    tell_launcher(words)
    logging.log(logging.ERROR if ending.exit_code == NOT_FINITE else logging.INFO, words)


def begin(folder: RunFolder) -> None:
    """Training begins: no ending is recorded any more."""
    (folder.path / FILE).unlink(missing_ok=True)


def ended_under_this_launcher(folder: RunFolder) -> int | None:
    """The exit code of an ending that was meant, where torchrun now restarts the run because that code is not 0; else None."""
    try:
        told = json.loads((folder.path / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if told.get("launcher") != launcher() or not was_ours(folder.path):
        return None
    logging.info(f"The run ended on purpose ({told['why']}); this restart by torchrun does nothing. To go on: {told['next']}")
    return int(told["exit_code"])
