"""What a run begins with: the state that --resume means, or --pretrained with --load-pretrained-state."""

from __future__ import annotations

import math
import re

from open_lm import storage
from open_lm.checkpoint.find import Found, newest_state, read_state
from open_lm.checkpoint.run_state import RunState, newest_run_state
from open_lm.checkpoint.state_folder import restore_interrupted, run_states
from open_lm.params import Params
from open_lm.params.fields import suggestion
from open_lm.train.parallel import World, from_first
from open_lm.train.remote_folder import RemoteFolder, whole_states
from open_lm.train.remote_resume import newest_of_both, see_state
from open_lm.train.run_folder import RunFolder

_NUMBERED = re.compile(r"(step)_(\d+)|[\w.-]+_(\d+)\.pt")


def find_start(
    params: Params, folder: RunFolder, world: World, remote: RemoteFolder | None = None, claim: bool = True
) -> tuple[Found | None, str | None]:
    """The first process looks, all get its answer; those that don't see what it fetched from the copy of the run folder fetch it too.

    Args:
        claim: False to look only; nothing is fetched or written.

    Returns:
        The state whose position the run goes on from, None to begin at step 0; and what model and optimizer are taken from, None for
        new ones. They differ with --reset-trainer-state only.

    Raises:
        ValueError: nothing that can be resumed where something is asked for.
    """
    found: tuple[Found | None, str | None] | str = (None, None)
    if world.is_first:
        try:
            if claim and params.checkpoint.resume:
                restore_interrupted(params.checkpoint.checkpoint_dir or str(folder.checkpoints))
            found = _find(params, folder, remote, claim)
        except (ValueError, OSError) as error:
            found = str(error)
    found = from_first(found)
    if isinstance(found, str):
        raise ValueError(found)
    if claim and found[0] and remote and params.checkpoint.resume == "latest" and _inside(folder, found[0][0]):
        see_state(folder.path, remote, found[0][1].step)
    return found


def _inside(folder: RunFolder, state: str) -> bool:
    return state == str(folder.checkpoints / f"step_{state.rpartition('_')[2]}")


def _find(params: Params, folder: RunFolder, remote: RemoteFolder | None, claim: bool) -> tuple[Found | None, str | None]:
    resume, reset = params.checkpoint.resume, params.checkpoint.reset_trainer_state
    if resume is None:
        _check_unused(params.checkpoint.checkpoint_dir)
    if resume == "latest":
        own = _latest(params.checkpoint.checkpoint_dir, folder, remote, claim)
        if own:  # of this run, which was reset when it began, if at all
            return own, own[0]
    elif resume is not None:
        found = _named("--resume", resume, folder)
        start = _reset(found, folder) if reset else _both(found)
        _check_newest(resume, None if reset else found[1], params.checkpoint.checkpoint_dir, folder, remote)
        return start
    if params.model.load_pretrained_state:
        assert params.model.pretrained
        found = _named("--pretrained", params.model.pretrained, folder)
        return (None, found[0]) if reset else _both(found)
    return None, None


def _latest(states: str | None, folder: RunFolder, remote: RemoteFolder | None, claim: bool) -> Found | None:
    """The newest state of the run's own: in --checkpoint-dir, in the run folder (run states, and what OpenLM left), or in its copy."""
    found = newest_run_state(states) if states else None
    if remote:
        return newest_of_both(folder.path, remote, found, claim)
    return newest_state(folder.checkpoints, found)


def _check_newest(resume: str, state: RunState | None, states: str | None, folder: RunFolder, remote: RemoteFolder | None) -> None:
    """Raises ValueError where the run has checkpoints of its own that are later than the state that it would go on from.

    The next --resume latest, or a restart, would take those for its newest.

    Args:
        state: None for a run whose steps begin anew.
    """
    step, epoch = (state.step, math.inf if state.epoch is None else state.epoch) if state else (-1, -1)
    names = [path.name for path in folder.checkpoints.glob("*_*")]
    names += [one.rpartition("/")[2] for one in run_states(states)] if states else []
    if remote:
        try:
            copied = remote.files()
        except (OSError, ValueError) as error:
            raise ValueError(f"--remote-sync {error}") from None
        names += [*(f"step_{step}" for step in whole_states(copied)), *(name.rpartition("/")[2] for name in copied)]
    numbers = {name: match for name in names if (match := _NUMBERED.fullmatch(name))}
    later = sorted(name for name, match in numbers.items() if (int(match[2]) > step if match[1] else int(match[3]) > epoch))
    if later:
        places = [str(folder.checkpoints), *([states] if states else []), *([storage.join(remote.url, "checkpoints")] if remote else [])]
        shown = ", ".join(later[:8]) + (f" and {len(later) - 8} more" if len(later) > 8 else "")
        raise ValueError(
            f"--resume {resume}: the run {folder.name} has later checkpoints ({shown}), which its next --resume latest would go on from; "
            f"give another --name, or move them out of {' and '.join(places)} to take this run back"
        )


def _check_unused(states: str | None) -> None:
    """Raises ValueError where a new run would put its run states among those of another."""
    if states and run_states(states):
        raise ValueError(f"--checkpoint-dir {states}: holds run states; give --resume latest to continue from them, or another folder")


def _named(flag: str, path: str, folder: RunFolder) -> Found:
    if flag == "--resume":
        check_there(path, folder)
    try:
        return read_state(path)
    except ValueError as error:
        raise ValueError(f"{flag} {path}: {error}") from None


def check_there(path: str, folder: RunFolder) -> None:
    """Raises ValueError with what the run has where --resume names what isn't there."""
    if storage.is_remote(path) or storage.local_path(path).exists():
        return
    own = [state.rpartition("/")[2] for state in run_states(str(folder.checkpoints))]
    own += sorted(pair.name.replace("optimizer", "epoch") for pair in folder.checkpoints.glob("optimizer_*.pt"))
    there = f"{folder.checkpoints} holds {', '.join(own[:8])}" if own else f"{folder.path} has no checkpoint to resume"
    raise ValueError(f"--resume {path}: no such file or folder.{suggestion(path, ['latest'])} {there}; latest takes the newest")


def _both(found: Found) -> tuple[Found, str]:
    return found, found[0]


def _reset(found: Found, folder: RunFolder) -> tuple[None, str]:
    """Raises ValueError where the run has checkpoints, which later resumes would take for those of the run that begins now."""
    if any(folder.checkpoints.glob("step_*")) or any(folder.checkpoints.glob("epoch_*.pt")):
        raise ValueError(f"--reset-trainer-state: {folder.path} has checkpoints of its own; give another --name")
    return None, found[0]
