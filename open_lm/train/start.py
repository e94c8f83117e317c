"""What a run begins with: the state that --resume means, or --pretrained with --load-pretrained-state."""

from __future__ import annotations

from open_lm.checkpoint.find import Found, newest_state, read_state
from open_lm.checkpoint.run_state import newest_run_state
from open_lm.checkpoint.state_folder import run_states
from open_lm.params import Params
from open_lm.train.parallel import World, from_first
from open_lm.train.remote_folder import RemoteFolder
from open_lm.train.remote_resume import newest_of_both, see_state
from open_lm.train.run_folder import RunFolder


def find_start(params: Params, folder: RunFolder, world: World, remote: RemoteFolder | None = None) -> tuple[Found | None, str | None]:
    """The first process looks, all get its answer; those that don't see what it fetched from the copy of the run folder fetch it too.

    Returns:
        The state whose position the run goes on from, None to begin at step 0; and what model and optimizer are taken from, None for
        new ones. They differ with --reset-trainer-state only.

    Raises:
        ValueError: nothing that can be resumed where something is asked for.
    """
    found: tuple[Found | None, str | None] | str = (None, None)
    if world.is_first:
        try:
            found = _find(params, folder, remote)
        except (ValueError, OSError) as error:
            found = str(error)
    found = from_first(found)
    if isinstance(found, str):
        raise ValueError(found)
    if found[0] and remote and params.checkpoint.resume == "latest" and _inside(folder, found[0][0]):
        see_state(folder.path, remote, found[0][1].step)
    return found


def _inside(folder: RunFolder, state: str) -> bool:
    return state == str(folder.checkpoints / f"step_{state.rpartition('_')[2]}")


def _find(params: Params, folder: RunFolder, remote: RemoteFolder | None) -> tuple[Found | None, str | None]:
    resume, reset = params.checkpoint.resume, params.checkpoint.reset_trainer_state
    if resume is None:
        _check_unused(params.checkpoint.checkpoint_dir)
    if resume == "latest":
        own = _latest(params.checkpoint.checkpoint_dir, folder, remote)
        if own:  # of this run, which was reset when it began, if at all
            return own, own[0]
    elif resume is not None:
        return _reset(_named("--resume", resume), folder) if reset else _both(_named("--resume", resume))
    if params.model.load_pretrained_state:
        assert params.model.pretrained
        found = _named("--pretrained", params.model.pretrained)
        return (None, found[0]) if reset else _both(found)
    return None, None


def _latest(states: str | None, folder: RunFolder, remote: RemoteFolder | None) -> Found | None:
    """The newest state of the run's own: in --checkpoint-dir, in the run folder and its copy, or what OpenLM left there."""
    if states:
        return newest_run_state(states)
    return (newest_of_both(folder.path, remote) if remote else None) or newest_state(folder.checkpoints)


def _check_unused(states: str | None) -> None:
    """Raises ValueError where a new run would put its run states among those of another."""
    if states and run_states(states):
        raise ValueError(f"--checkpoint-dir {states}: holds run states; give --resume latest to continue from them, or another folder")


def _named(flag: str, path: str) -> Found:
    try:
        return read_state(path)
    except ValueError as error:
        raise ValueError(f"{flag} {path}: {error}") from None


def _both(found: Found) -> tuple[Found, str]:
    return found, found[0]


def _reset(found: Found, folder: RunFolder) -> tuple[None, str]:
    """Raises ValueError where the run has checkpoints, which later resumes would take for those of the run that begins now."""
    if any(folder.checkpoints.glob("step_*")) or any(folder.checkpoints.glob("epoch_*.pt")):
        raise ValueError(f"--reset-trainer-state: {folder.path} has checkpoints of its own; give another --name")
    return None, found[0]
