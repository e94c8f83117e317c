"""Where metrics go: `metrics.jsonl`, TensorBoard, W&B. First process only. After a resume each goes on without a step twice."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from open_lm import storage
from open_lm.params import LogParams
from open_lm.storage.json_lines import drop_after
from open_lm.train.run_folder import RunFolder


class Sink(Protocol):
    """Somewhere that metrics go."""

    def write(self, metrics: Mapping[str, Any], step: int, group: str) -> None:
        """Write the numbers of one step of `train`, `valid` or `eval`."""

    def close(self) -> None:
        """Flush."""


class JsonLines:
    """`metrics.jsonl`: one object per log step of training."""

    def __init__(self, path: Path, start_step: int):
        drop_after(path, start_step, others_stay=False)
        with storage.tell_full_disk(path):
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  # open as long as the run

    def write(self, metrics: Mapping[str, Any], step: int, group: str) -> None:
        """Training metrics only; validations are in results.jsonl."""
        if group == "train":
            with storage.tell_full_disk(self.file.name):
                self.file.write(json.dumps(metrics) + "\n")
                self.file.flush()

    def close(self) -> None:
        """Close the file."""
        with storage.tell_full_disk(self.file.name):
            self.file.close()


class TensorBoard:
    """Event files in `tensorboard/`; a resumed run purges the steps that it makes again."""

    def __init__(self, path: Path, start_step: int):
        from torch.utils.tensorboard import SummaryWriter

        again = path.is_dir()  # also a run that was stopped before its first checkpoint made steps that are now made again
        self.path = path
        with storage.tell_full_disk(path):
            self.writer = SummaryWriter(str(path), purge_step=start_step + 1 if again else None)

    def write(self, metrics: Mapping[str, Any], step: int, group: str) -> None:
        """Numbers as `<group>/<name>` by step."""
        with storage.tell_full_disk(self.path):
            for name, value in metrics.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Flush the event file."""
        with storage.tell_full_disk(self.path):
            self.writer.close()


class Wandb:
    """A W&B run, the same one after a resume: its id is kept in the run folder. WANDB_MODE=offline works.

    W&B keeps the first of two values of one step; the steps that a resumed run makes again are not told twice.
    """

    def __init__(self, params: LogParams, folder: RunFolder, config: Mapping[str, Any], start_step: int):
        import wandb

        try:
            self.run = wandb.init(
                project=params.wandb_project_name,
                name=folder.name,
                id=_wandb_id(folder.path / "wandb_id.txt"),
                notes=params.wandb_notes,
                dir=folder.path,
                resume="allow",
                config=dict(config),
                allow_val_change=True,
            )
        except wandb.errors.Error as error:
            remedy = "run `wandb login` or set WANDB_API_KEY, or set WANDB_MODE=offline"
            raise ValueError(f"--report-to wandb: {' '.join(str(error).split())}; {remedy}") from None
        self.known = self.run.step if self.run.resumed else start_step
        """Steps below this one are with W&B already."""

    def write(self, metrics: Mapping[str, Any], step: int, group: str) -> None:
        """Numbers as `<group>/<name>` by step."""
        values = {f"{group}/{name}": value for name, value in metrics.items() if isinstance(value, (int, float)) and name != "step"}
        if step >= self.known:
            self.run.log(values, step=step)

    def close(self) -> None:
        """Finish the W&B run."""
        self.run.finish()


def _wandb_id(path: Path) -> str:
    """The id of this run folder's W&B run; a new folder gets a new one."""
    if not path.is_file():
        with storage.atomic_write(path, "w") as file:
            file.write(f"{secrets.token_hex(4)}\n")
    return path.read_text(encoding="utf-8").strip()


def make_sinks(params: LogParams, folder: RunFolder, config: Mapping[str, Any], start_step: int) -> list[Sink]:
    """metrics.jsonl always; TensorBoard and W&B by --report-to."""
    wanted = {name for item in params.report_to for name in item.split(",")}
    sinks: list[Sink] = [JsonLines(folder.metrics, start_step)]
    if wanted & {"tensorboard", "all"}:
        sinks.append(TensorBoard(folder.path / "tensorboard", start_step))
    if wanted & {"wandb", "all"}:
        sinks.append(Wandb(params, folder, config, start_step))
    return sinks
