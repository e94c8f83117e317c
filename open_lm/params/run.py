"""Options of a run's folder: name, checkpoints, logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from open_lm.params.fields import flag


@dataclass(frozen=True)
class CheckpointParams:
    """checkpoints"""

    resume: str | None = None
    """`latest`, or what to continue from: a step_<n> folder or a run folder, local or a URL; or a local epoch_N.pt with its
    optimizer_N.pt. A run's own only where it has no later ones."""
    checkpoint_dir: str | None = None
    """Folder or URL (s3://...) for this run's step_<n> run states. Default: the run folder's checkpoints/."""
    reset_trainer_state: bool = False
    """Take model and optimizer from --resume PATH (or --pretrained with --load-pretrained-state); step, schedule and data begin anew."""
    save_frequency: int = 1
    """Epochs between checkpoints; 0 saves at the end of the run only."""
    save_every_steps: int = 0
    """Steps between run states, besides those at epoch ends; 0 saves none."""
    save_every_minutes: float = 0.0
    """Minutes after the last run state that the next one is saved; 0 looks at no clock."""
    keep_last: int = 0
    """Run states that are kept; older ones go once a new one is whole. 0 keeps all."""
    keep_every: int = 0
    """With --keep-last: also keep the run states whose step this number divides, for good."""
    sync_save: bool = False
    """Hold training up until a run state is written: saves the host memory for a second copy of the state."""
    save_most_recent: bool = False
    """Also save at epochs that --save-frequency passes over; such a checkpoint goes when the next one is whole."""
    delete_previous_checkpoint: bool = False
    """Delete the previous checkpoint once the new one is whole."""
    save_openlm_optimizer: bool = False
    """Write optimizer_N.pt beside each epoch_N.pt, as OpenLM does; twice the size of the weights."""
    remote_sync: str | None = None
    """Copy the run folder while training to <this>/<name>: s3://bucket/path, another fsspec URL, or a folder; --resume latest looks there
    too."""
    remote_sync_frequency: int = 300
    """Seconds between copies; the first is at the start, the last at the end."""
    remote_sync_protocol: Literal["s3", "fsspec"] = "s3"
    """Accepted; the URL of --remote-sync tells its protocol."""


@dataclass(frozen=True)
class LogParams:
    """run folder and logs"""

    name: str | None = None
    """Name of the run. Default: made from the time and the main options."""
    logs: str = flag("./logs", "--logs-dir")
    """Folder of run folders. Under torchrun write --logs-dir: torchrun rejects --logs as an abbreviation of its own --logs-specs."""
    overwrite: bool = False
    """Remove an existing run of this name first; refused where anything lies in its folder that no run wrote."""
    report_to: tuple[str, ...] = ()
    """tensorboard, wandb, both (tensorboard,wandb) or all."""
    wandb_project_name: str = "open-lm"
    """W&B project."""
    wandb_notes: str = ""
    """W&B notes."""
    log_every_n_steps: int = 100
    """Steps between log lines."""
    log_local: bool = False
    """Write a log file for every process, not only the first."""
    debug: bool = False
    """Log at level DEBUG."""
    peak_tflops: float | None = None
    """Peak dense TFLOP/s of one device, against which mfu is logged. Default: the data sheet's in bf16, for GPUs that are known; else no
    mfu."""
    copy_codebase: bool = False
    """Copy the source code into the run folder."""
