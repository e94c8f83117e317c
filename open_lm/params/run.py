"""Options of a run's folder: name, checkpoints, logs."""

from __future__ import annotations

from dataclasses import dataclass

from open_lm.params.fields import flag


@dataclass(frozen=True)
class CheckpointParams:
    """checkpoints"""

    resume: str | None = None
    """`latest`, or a path to continue from: a checkpoints/step_<n> folder, an epoch_N.pt with its optimizer_N.pt, or a run folder."""
    reset_trainer_state: bool = False
    """Take model and optimizer from --resume PATH (or --pretrained with --load-pretrained-state); step, schedule and data begin anew."""
    save_frequency: int = 1
    """Epochs between checkpoints; 0 saves at the end of the run only."""
    save_every_steps: int = 0
    """Steps between run states, besides those at epoch ends; 0 saves none."""
    save_most_recent: bool = False
    """Also save at epochs that --save-frequency passes over; such a checkpoint goes when the next one is whole."""
    delete_previous_checkpoint: bool = False
    """Delete the previous checkpoint once the new one is whole."""
    save_openlm_optimizer: bool = False
    """Write optimizer_N.pt beside each epoch_N.pt, as OpenLM does; twice the size of the weights."""
    remote_sync: str | None = None
    """Copy the run folder to this URL while training."""
    remote_sync_frequency: int = 300
    """Seconds between copies."""
    remote_sync_protocol: str = "s3"
    """Protocol of --remote-sync."""


@dataclass(frozen=True)
class LogParams:
    """run folder and logs"""

    name: str | None = None
    """Name of the run. Default: made from the time and the main options."""
    logs: str = flag("./logs", "--logs-dir")
    """Folder of run folders. Under torchrun write --logs-dir: torchrun rejects --logs as an abbreviation of its own --logs-specs."""
    overwrite: bool = False
    """Delete an existing run of this name first."""
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
    copy_codebase: bool = False
    """Copy the source code into the run folder."""
