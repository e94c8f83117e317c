"""What a run tells while it trains: log lines, `metrics.jsonl`, TensorBoard, W&B, a progress bar. First process only."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from open_lm.params import LogParams
from open_lm.train.loop import Nothing, Position
from open_lm.train.run_folder import RunFolder
from open_lm.train.schedule import RunLength
from open_lm.train.step import StepResult


class Waits(Protocol):
    """Something that counts how long it was waited for, and the rows of this process that were lost, where any may be."""

    wait_seconds: float
    lost_rows: int
    tolerate: float


class Sink(Protocol):
    """Somewhere that metrics go."""

    def write(self, metrics: Mapping[str, Any], step: int, group: str) -> None:
        """Write the numbers of one step of `train` or `valid`."""

    def close(self) -> None:
        """Flush."""


class JsonLines:
    """`metrics.jsonl`: one object per log step of training."""

    def __init__(self, path: Path, start_step: int):
        _drop_after(path, start_step)
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  # open as long as the run

    def write(self, metrics: Mapping[str, Any], step: int, group: str) -> None:
        """Training metrics only; validations are in results.jsonl."""
        if group == "train":
            self.file.write(json.dumps(metrics) + "\n")
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _drop_after(path: Path, start_step: int) -> None:
    """Remove the lines of steps that a resumed run makes again, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= start_step:
                kept.append(line)
        except ValueError:
            logging.warning(f"{path}: dropped a line that is no JSON")
    path.write_text("".join(kept), encoding="utf-8")


class TensorBoard:
    """Event files in `tensorboard/`; a resumed run purges the steps that it makes again."""

    def __init__(self, path: Path, start_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(path), purge_step=start_step + 1 if start_step else None)

    def write(self, metrics: Mapping[str, Any], step: int, group: str) -> None:
        """Numbers as `<group>/<name>` by step."""
        for name, value in metrics.items():
            if isinstance(value, (int, float)) and name != "step":
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Flush the event file."""
        self.writer.close()


class Wandb:
    """A W&B run of the same name and id, continued on resume. WANDB_MODE=offline works."""

    def __init__(self, params: LogParams, folder: RunFolder, config: Mapping[str, Any]):
        import wandb

        self.run = wandb.init(
            project=params.wandb_project_name,
            name=folder.name,
            id=folder.name,
            notes=params.wandb_notes,
            dir=folder.path,
            resume="allow",
            config=dict(config),
        )

    def write(self, metrics: Mapping[str, Any], step: int, group: str) -> None:
        """Numbers as `<group>/<name>` by step."""
        values = {f"{group}/{name}": value for name, value in metrics.items() if isinstance(value, (int, float))}
        self.run.log(values, step=step)

    def close(self) -> None:
        """Finish the W&B run."""
        self.run.finish()


def make_sinks(params: LogParams, folder: RunFolder, config: Mapping[str, Any], start_step: int) -> list[Sink]:
    """metrics.jsonl always; TensorBoard and W&B by --report-to."""
    wanted = {name for item in params.report_to for name in item.split(",")}
    sinks: list[Sink] = [JsonLines(folder.metrics, start_step)]
    if wanted & {"tensorboard", "all"}:
        sinks.append(TensorBoard(folder.path / "tensorboard", start_step))
    if wanted & {"wandb", "all"}:
        sinks.append(Wandb(params, folder, config))
    return sinks


class MetricsLog(Nothing):
    """Reads the device every --log-every-n-steps steps, and tells every sink. On every process, since reading must be done by all.

    With `source_names`, `loss/<name>` is the mean cross-entropy, without z-loss, over the targets of a source in the steps since the
    last log step; a source that had none in them is left out.
    """

    def __init__(self, sinks: list[Sink], every: int, length: RunLength, waits: Waits, start: Position, source_names: Sequence[str] = ()):
        self.sinks, self.every, self.length, self.waits, self.source_names = sinks, every, length, waits, source_names
        self.since, self.before, self.waited = time.perf_counter(), start, 0.0
        self.bad_steps: list[Tensor] = []
        self.by_source: Tensor | None = None

    def after_step(self, position: Position, result: StepResult) -> None:
        """At a log step and at the last one: read loss and norm, tell every sink, write the log line."""
        self.bad_steps.append(result.skipped)
        if result.by_source is not None:
            self.by_source = result.by_source if self.by_source is None else self.by_source + result.by_source
        if position.step % self.every and position.step != self.length.total_steps:
            return
        loss, grad_norm = float(result.loss), float(result.grad_norm)
        skipped = int(torch.stack(self.bad_steps).sum())
        now, waited = time.perf_counter(), self.waits.wait_seconds
        metrics = {
            "step": position.step,
            "epoch": position.epoch,
            "tokens": position.tokens,
            "loss": loss,
            "lr": position.lr,
            "grad_norm": grad_norm,
            "tokens_per_second": (position.tokens - self.before.tokens) / (now - self.since),
            "data_wait_seconds": waited - self.waited,
            **self._source_losses(),
        }
        if self.waits.tolerate:
            metrics["lost_rows"] = _over_processes(self.waits.lost_rows, result.loss.device)
        self.since, self.before, self.waited, self.bad_steps, self.by_source = now, position, waited, [], None
        if skipped:
            logging.warning(f"{skipped} of the last steps were not finite, or spikes; their updates were left out")
        for sink in self.sinks:
            sink.write(metrics, position.step, "train")
        logging.info(_log_line(metrics, self.length))

    def _source_losses(self) -> dict[str, float]:
        if self.by_source is None:
            return {}
        sums, counts = self.by_source.tolist()
        return {f"loss/{name}": nats / n for name, nats, n in zip(self.source_names, sums, counts, strict=True) if n}

    def validated(self, metrics: Mapping[str, Any], step: int) -> None:
        """Tell every sink about a validation."""
        for sink in self.sinks:
            sink.write(metrics, step, "valid")

    def close(self) -> None:
        """Close every sink."""
        for sink in self.sinks:
            sink.close()


def _over_processes(count: int, device: torch.device) -> int:
    """The sum of a count of each process; all must ask for it."""
    total = torch.tensor(count, device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return int(total)


def _log_line(m: Mapping[str, Any], length: RunLength) -> str:
    done = 100 * m["step"] / length.total_steps
    return (
        f"Step {m['step']}/{length.total_steps} ({done:.0f}%) Epoch: {m['epoch']} Loss: {m['loss']:.3f} LR: {m['lr']:.3g} "
        f"Grad norm: {m['grad_norm']:.3f} Tokens/s: {m['tokens_per_second']:,.0f} Data (s): {m['data_wait_seconds']:.3f}"
    )


class ProgressBar(Nothing):
    """Steps done and left, where standard error is a terminal."""

    def __init__(self, length: RunLength, start: Position):
        from tqdm import tqdm

        self.bar = tqdm(
            total=length.total_steps, initial=start.step, unit="step", dynamic_ncols=True, smoothing=0.05, disable=not sys.stderr.isatty()
        )

    def after_step(self, position: Position, result: StepResult) -> None:
        """One further."""
        self.bar.update(1)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
