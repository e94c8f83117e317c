"""What a run begins with: the state that --resume means, or --pretrained with --load-pretrained-state."""

from __future__ import annotations

from pathlib import Path

from open_lm.checkpoint.find import Found, newest_state, read_state
from open_lm.params import Params
from open_lm.train.parallel import World, from_first
from open_lm.train.run_folder import RunFolder


def find_start(params: Params, folder: RunFolder, world: World) -> tuple[Found | None, Path | str | None]:
    """The first process looks, all get its answer.

    Returns:
        The state whose position the run goes on from, None to begin at step 0; and what model and optimizer are taken from, None for
        new ones. They differ with --reset-trainer-state only.

    Raises:
        ValueError: nothing that can be resumed where something is asked for.
    """
    found: tuple[Found | None, Path | str | None] | str = (None, None)
    if world.is_first:
        try:
            found = _find(params, folder)
        except ValueError as error:
            found = str(error)
    found = from_first(found)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _find(params: Params, folder: RunFolder) -> tuple[Found | None, Path | str | None]:
    resume, reset = params.checkpoint.resume, params.checkpoint.reset_trainer_state
    if resume == "latest":
        own = newest_state(folder.checkpoints)
        if own:  # of this run, which was reset when it began, if at all
            return own, own[0]
    elif resume is not None:
        return _reset(_named("--resume", resume), folder) if reset else _both(_named("--resume", resume))
    if params.model.load_pretrained_state:
        assert params.model.pretrained
        found = _named("--pretrained", params.model.pretrained)
        return (None, found[0]) if reset else _both(found)
    return None, None


def _named(flag: str, path: str) -> Found:
    try:
        return read_state(path)
    except ValueError as error:
        raise ValueError(f"{flag} {path}: {error}") from None


def _both(found: Found) -> tuple[Found, Path | str]:
    return found, found[0]


def _reset(found: Found, folder: RunFolder) -> tuple[None, Path | str]:
    """Raises ValueError where the run has checkpoints, which later resumes would take for those of the run that begins now."""
    if any(folder.checkpoints.glob("step_*")) or any(folder.checkpoints.glob("epoch_*.pt")):
        raise ValueError(f"--reset-trainer-state: {folder.path} has checkpoints of its own; give another --name")
    return None, found[0]
