"""What a run tells while it trains: the numbers of each log step, log lines, a progress bar. Where they go: `sinks`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from open_lm.train.loop import Nothing, Position
from open_lm.train.schedule import RunLength
from open_lm.train.sinks import Sink
from open_lm.train.step import StepResult
from open_lm.train.throughput import Throughput, memory


class Waits(Protocol):
    """Something that counts how long it was waited for, and the rows of this process that were lost, where any may be."""

    wait_seconds: float
    lost_rows: int
    tolerate: float


class MetricsLog(Nothing):
    """Reads the device every --log-every-n-steps steps, and tells every sink. On every process, since reading must be done by all.

    With `source_names`, `loss/<name>` is the mean cross-entropy, without z-loss, over the targets of a source in the steps since the
    last log step; a source that had none in them is left out.
    """

    def __init__(
        self,
        sinks: list[Sink],
        every: int,
        length: RunLength,
        throughput: Throughput,
        waits: Waits,
        start: Position,
        source_names: Sequence[str] = (),
    ):
        self.sinks, self.every, self.length, self.waits, self.source_names = sinks, every, length, waits, source_names
        self.throughput = throughput
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
            **self.throughput.rates((position.tokens - self.before.tokens) / (now - self.since)),
            "data_wait_seconds": waited - self.waited,
            **memory(result.loss.device),
            **self._source_losses(),
        }
        if self.waits.tolerate:
            metrics["lost_rows"] = _over_processes(self.waits.lost_rows, result.loss.device)
        self.since, self.before, self.waited, self.bad_steps, self.by_source = now, position, waited, [], None
        if skipped:
            logging.warning(f"{skipped} of the last steps had a gradient that is not finite; their updates were left out")
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
    mfu = f" MFU: {100 * m['mfu']:.1f}%" if "mfu" in m else ""
    return (
        f"Step {m['step']}/{length.total_steps} ({done:.0f}%) Epoch: {m['epoch']} Loss: {m['loss']:.3f} LR: {m['lr']:.3g} "
        f"Grad norm: {m['grad_norm']:.3f} Tokens/s: {m['tokens_per_second']:,.0f}{mfu} Data (s): {m['data_wait_seconds']:.3f}"
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
