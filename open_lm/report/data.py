"""What a run read: the part of a report that is about its data, from the run folder's text files alone.

`read_data(folder)` takes `metrics.jsonl`, `plans.json` (without it the newest run state), `params.txt`; the folder may be behind a url, and
the run still going or killed. What was planned is arithmetic on the plan's description, so that no shard is opened. Steps are counted
from 1, rows from 0; a plan's own rows begin at its `first_row`.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from open_lm import storage
from open_lm.data.history import read_history
from open_lm.data.mixing import BLOCK, Mix
from open_lm.data.plan import fingerprint
from open_lm.data.plans_file import PlansFile, read_plans


@dataclass(frozen=True)
class PlannedSource:
    """A source of one plan; `share` of the rows; `bytes` of its shards, None where they aren't known."""

    name: str
    shards: int
    rows: int
    share: float
    bytes: int | None


@dataclass(frozen=True)
class PlanSpan:
    """A plan, and the rows of the run that it is for: from `first_row` to `stop_row`; `first_step` is its first."""

    first_row: int
    stop_row: int
    first_step: int
    replacement: bool
    fingerprint: str
    mix: Mix | None
    """None for synthetic tokens."""
    sources: tuple[PlannedSource, ...]

    def about_rows_of(self, row: int) -> tuple[float, ...]:
        """As `rows_of`, by the shares: exact at every 1024 x streams rows, and as quick where there are many streams."""
        at = min(max(row, self.first_row), self.stop_row) - self.first_row
        return tuple(at * source.share for source in self.sources)

    def rows_of(self, row: int) -> tuple[int, ...]:
        """Of each source, how many rows of the run the plan reads before a row."""
        at = min(max(row, self.first_row), self.stop_row) - self.first_row
        return tuple(int(self.mix.counts_before(i, at).sum()) for i in range(len(self.sources))) if self.mix else ()

    def passes_of(self, row: int) -> tuple[float, ...]:
        """Of each source, the passes made before a row."""
        return tuple(count / source.rows for count, source in zip(self.rows_of(row), self.sources))

    def begins(self, source: int, most: int) -> tuple[int, ...]:
        """Rows of the run at which the second, third, ... pass over a source begins, `most` of them; none with replacement."""
        if self.mix is None or self.replacement:
            return ()
        total = self.sources[source].rows
        passes = -(-self.rows_of(self.stop_row)[source] // total)
        return tuple(self.first_row + self.mix.number_of(source, p * total) for p in range(1, min(passes, most + 1)))


@dataclass(frozen=True)
class BatchSpan:
    """A size of batch: the steps and rows before it, and its rows of `seq_len` tokens."""

    step: int
    row: int
    size: int
    seq_len: int


@dataclass(frozen=True)
class DataStep:
    """One line of metrics.jsonl; what it tells about the steps since the line before. nan where a number is absent."""

    step: int
    tokens: float
    seconds: float
    wait: float
    """Seconds of these that training waited for a batch."""
    fetched: float
    """Bytes from elsewhere."""
    lost: float
    """Rows lost since the run began."""
    targets: Mapping[str, float]
    losses: Mapping[str, float]
    """Of each source, by name; empty where there is one source."""


@dataclass(frozen=True)
class DataView:
    """What is known of a run's data."""

    name: str
    steps: tuple[DataStep, ...]
    """In order, each step once; none before the first log line."""
    plans: tuple[PlanSpan, ...]
    batches: tuple[BatchSpan, ...]
    total_steps: int | None

    @property
    def last_step(self) -> int:
        """The last one that is logged."""
        return self.steps[-1].step if self.steps else 0

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        """Of all plans, in the order in which they came."""
        planned = [source.name for plan in self.plans for source in plan.sources]
        logged = [name for step in self.steps for name in step.targets]
        return tuple(dict.fromkeys([*planned, *logged]))

    def row_after(self, step: int) -> int:
        """Rows of the run that the steps up to one have read."""
        batch = next((b for b in reversed(self.batches) if b.step <= step), None)
        return batch.row + (step - batch.step) * batch.size if batch else 0

    def step_of(self, row: int) -> int:
        """The step that reads a row."""
        batch = self.batches[max(0, bisect.bisect_right([b.row for b in self.batches], row) - 1)]
        return batch.step + (row - batch.row) // batch.size + 1

    def tokens_after(self, step: int) -> float:
        """Training tokens after a step, by the sizes of its batches."""
        total = 0.0
        for batch, after in zip(self.batches, [*self.batches[1:], None]):
            end = step if after is None else min(step, after.step)
            total += max(0, end - batch.step) * batch.size * batch.seq_len
        return total

    def planned_share(self, name: str, start: int, stop: int) -> float:
        """The share of a source in the rows that the steps start < step <= stop were to read; nan where nothing is known."""
        low, high = self.row_after(start), self.row_after(stop)
        here = [plan for plan in self.plans if plan.first_row < high and plan.stop_row > low]
        if not here or high <= low:
            return math.nan
        parts = ((min(high, plan.stop_row) - max(low, plan.first_row), plan) for plan in here)
        return sum(rows * source.share for rows, plan in parts for source in plan.sources if source.name == name) / (high - low)

    def bytes_used(self, step: int) -> float:
        """Bytes of the shards that hold the rows of the steps up to one: of a source its bytes by its rows; nan where not known."""
        total, end = 0.0, self.row_after(step)
        for plan in self.plans:
            for source, rows in zip(plan.sources, plan.about_rows_of(end)):
                total += math.nan if source.bytes is None else rows * source.bytes / source.rows
        return total

    def sum_of(self, what: str) -> float:
        """The sum of `seconds`, `wait` or `fetched` over the log lines that tell it."""
        return sum(v for v in (getattr(step, what) for step in self.steps) if math.isfinite(v))


def read_data(folder: str) -> DataView:
    """Read a run folder, local or behind a url.

    Raises:
        ValueError: no run folder.
    """
    folder = str(folder).rstrip("/")
    metrics, params = (_text(storage.join(folder, name)) for name in ("metrics.jsonl", "params.txt"))
    plans = read_plans(folder)
    if metrics is None and params is None and plans is None:
        raise ValueError(f"--run {folder}: is no run folder; it has neither metrics.jsonl nor params.txt nor plans.json")
    if plans is None and not storage.is_remote(folder):
        plans = _of_run_states(folder)
    told = dict(line.partition(": ")[::2] for line in (params or "").splitlines())
    total = int(told["total_steps"]) if told.get("total_steps", "").isdigit() else plans.total_steps if plans else None
    steps = data_steps(_json_lines(metrics or ""))
    batches = tuple(BatchSpan(b["step"], b["sequences"], b["global_batch_size"], b["seq_len"]) for b in plans.batches) if plans else ()
    if plans and not batches:
        batches = _first_batch(told, plans)
    view = DataView(folder.rpartition("/")[2], steps, (), batches, total)
    return DataView(view.name, steps, _spans(plans.plans, view) if plans and batches else (), batches, total)


def _text(url: str) -> str | None:
    try:
        return storage.read_bytes(url).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"--run: {error}") from None


def _json_lines(text: str) -> list[Any]:
    found = []
    for line in text.split("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:  # a line that is being written, or was cut by a kill; read_run counts them
            continue
    return found


def _of_run_states(folder: str) -> PlansFile | None:
    try:
        return read_history(folder).lineage
    except ValueError:
        return None


def _first_batch(told: Mapping[str, str], plans: PlansFile) -> tuple[BatchSpan, ...]:
    """Of a run of version 0.2 and before, which kept no list of its batch sizes."""
    size, seq_len = told.get("global_batch_size", ""), plans.plans[0]["plan"].get("seq_len")
    return (BatchSpan(0, 0, int(size), int(seq_len)),) if size.isdigit() and seq_len else ()


def _spans(plans: Sequence[Mapping[str, Any]], view: DataView) -> tuple[PlanSpan, ...]:
    end = view.row_after(view.total_steps if view.total_steps is not None else view.last_step)
    stops = [*(plan["first"] for plan in plans[1:]), max(end, plans[-1]["first"])]
    return tuple(_span(plan, stop, view) for plan, stop in zip(plans, stops))


def _span(entry: Mapping[str, Any], stop: int, view: DataView) -> PlanSpan:
    plan, first = entry["plan"], entry["first"]
    described, about = plan.get("sources") or [], entry.get("sources") or []
    if len(about) != len(described):
        about = [{"name": f"source {i}", "bytes": None} for i in range(len(described))]
    shares = plan.get("shares") or [BLOCK]
    sources = tuple(
        PlannedSource(str(a["name"]), int(d["shards"]), int(d["rows"]), share / BLOCK, a.get("bytes"))
        for a, d, share in zip(about, described, shares)
    )
    mix = Mix(int(plan["seed"]), int(plan["streams"]), tuple(shares)) if sources else None
    replaced = bool(plan.get("replacement"))
    return PlanSpan(first, stop, view.step_of(first), replaced, fingerprint(plan)[:12], mix, sources)


def data_steps(values: Sequence[Any]) -> tuple[DataStep, ...]:
    """The log lines among some JSON values: each step once, the last one said, in order."""
    lines = {v["step"]: v for v in values if isinstance(v, dict) and isinstance(v.get("step"), int)}
    found: list[DataStep] = []
    for number in sorted(lines):
        line = lines[number]
        tokens, before = _number(line.get("tokens")), found[-1].tokens if found else 0.0
        seconds = _number(line.get("seconds"))
        if math.isnan(seconds) and (speed := _number(line.get("tokens_per_second"))) > 0:
            seconds = (tokens - before) / speed
        wait, fetched, lost = _number(line.get("data_wait_seconds")), _number(line.get("fetched_bytes")), _number(line.get("lost_rows"))
        targets, losses = _by_source(line, "targets/"), _by_source(line, "loss/")
        found.append(DataStep(number, tokens, seconds, wait, fetched, lost, targets, losses))
    return tuple(found)


def _by_source(line: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): _number(value) for name, value in line.items() if name.startswith(prefix)}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else math.nan
