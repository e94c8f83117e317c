"""What a run tells while it trains: the numbers of each log step, log lines, its progress. Where they go: `sinks`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from open_lm.progress import Progress
from open_lm.train.loop import Nothing, Position
from open_lm.train.schedule import RunLength
from open_lm.train.sinks import Sink
from open_lm.train.step import StepResult
from open_lm.train.throughput import Throughput, memory


class Waits(Protocol):
    """Something that counts for its process: how long it was waited for, rows that were lost, where any may be, and bytes fetched."""

    wait_seconds: float
    lost_rows: int
    tolerate: float

    @property
    def fetched_bytes(self) -> int:
        """So far, from elsewhere."""
        ...


class MetricsLog(Nothing):
    """Reads the device every --log-every-n-steps steps, and tells every sink. On every process, since reading must be done by all.

    `tokens` counts positions, `targets` the unmasked ones since the last log step. With `source_names`, `loss/<name>` is the mean
    cross-entropy, without z-loss, over the targets of a source in the steps since the last log step, `targets/<name>` their number; a
    source that had none in them has no loss. `data_wait_seconds` is that of the process that waited longest, out of `seconds`;
    `fetched_bytes` and `lost_rows` are summed over the processes. `more` gives further numbers.
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
        more: Callable[[], Mapping[str, float]] = dict,
    ):
        self.throughput, self.more = throughput, more
        self.sinks, self.every, self.length, self.waits, self.source_names = sinks, every, length, waits, source_names
        self.since, self.before, self.waited, self.fetched = time.perf_counter(), start, 0.0, 0
        self.bad_steps: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.by_source: Tensor | None = None

    def after_step(self, position: Position, result: StepResult) -> None:
        """At a log step and at the last one: read loss and norm, tell every sink, write the log line."""
        self.bad_steps.append(result.skipped)
        self.targets.append(result.targets)
        if result.by_source is not None:
            self.by_source = result.by_source if self.by_source is None else self.by_source + result.by_source
        if position.step % self.every and position.step != self.length.total_steps:
            return
        loss, grad_norm = float(result.loss), float(result.grad_norm)
        skipped = int(torch.stack(self.bad_steps).sum())
        now, waited, fetched = time.perf_counter(), self.waits.wait_seconds, self.waits.fetched_bytes
        mine = (round(1e6 * (waited - self.waited)), fetched - self.fetched, self.waits.lost_rows)
        waits, fetches, losses = zip(*_of_all_processes(mine, result.loss.device))
        metrics = {
            "step": position.step,
            "epoch": position.epoch,
            "tokens": position.tokens,
            "targets": int(torch.stack(self.targets).sum()),
            "loss": loss,
            "lr": position.lr,
            "grad_norm": grad_norm,
            **self.throughput.rates((position.tokens - self.before.tokens) / (now - self.since)),
            "seconds": now - self.since,
            "data_wait_seconds": max(waits) / 1e6,
            **memory(result.loss.device),
            **self._source_losses(),
            **self.more(),
        }
        if self.waits.tolerate:
            metrics["lost_rows"] = sum(losses)
        if any(fetches):
            metrics["fetched_bytes"] = sum(fetches)
        self.since, self.before, self.waited, self.fetched = now, position, waited, fetched
        self.bad_steps, self.targets, self.by_source = [], [], None
        if skipped:
            logging.warning(f"{skipped} of the last steps were not finite, or spikes; their updates were left out")
        for sink in self.sinks:
            sink.write(metrics, position.step, "train")
        logging.info(_log_line(metrics, self.length))

    def _source_losses(self) -> dict[str, float]:
        if self.by_source is None:
            return {}
        sums, counts = self.by_source.tolist()
        told = {f"loss/{name}": nats / n for name, nats, n in zip(self.source_names, sums, counts, strict=True) if n}
        return told | {f"targets/{name}": int(n) for name, n in zip(self.source_names, counts, strict=True)}

    def validated(self, metrics: Mapping[str, Any], step: int) -> None:
        """Tell every sink about a validation."""
        for sink in self.sinks:
            sink.write(metrics, step, "valid")

    def scored(self, metrics: Mapping[str, Any], step: int) -> None:
        """Tell every sink about benchmark tasks."""
        for sink in self.sinks:
            sink.write(metrics, step, "eval")

    def close(self) -> None:
        """Close every sink."""
        for sink in self.sinks:
            sink.close()


def _of_all_processes(counts: Sequence[int], device: torch.device) -> list[list[int]]:
    """Some whole numbers of each process; all must ask for them."""
    if not dist.is_initialized():
        return [list(counts)]
    mine = torch.tensor(counts, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return torch.stack(found).tolist()


def over_processes(count: int, device: torch.device) -> int:
    """The sum of a count of each process; all must ask for it."""
    return sum(one for (one,) in _of_all_processes([count], device))


def _log_line(m: Mapping[str, Any], length: RunLength) -> str:
    done = 100 * m["step"] / length.total_steps
    mfu = f" MFU: {100 * m['mfu']:.1f}%" if "mfu" in m else ""
    return (
        f"Step {m['step']}/{length.total_steps} ({done:.0f}%) Epoch: {m['epoch']} Loss: {m['loss']:.3f} LR: {m['lr']:.3g} "
        f"Grad norm: {m['grad_norm']:.3f} Tokens/s: {m['tokens_per_second']:,.0f}{mfu} Data (s): {m['data_wait_seconds']:.3f}"
    )


class StepProgress(Nothing):
    """Steps done and left. On the first process."""

    def __init__(self, length: RunLength, start: Position):
        self.start = start
        self.shown = Progress("training", length.total_steps, "steps", first=start.step).__enter__()

    def after_step(self, position: Position, result: StepResult) -> None:
        """One further."""
        if position.step == self.start.step + 1:  # which may have compiled the model
            self.shown.restart(position.step)
        self.shown.done = position.step

    def close(self) -> None:
        """Show nothing any more."""
        self.shown.__exit__()
