"""What a run folder says about the data of a run: its options, which row each step began at, and the plan in force there.

Read from `plans.json`, `params.txt` and `checkpoints/step_*/state.json` as plain text and JSON, without torch. Steps are counted as the log
and metrics.jsonl count them: step 1 is the first, and `checkpoints/step_<n>` is the state after step n.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_lm import storage
from open_lm.data.plans_file import PlansFile, plans_of, read_plans
from open_lm.params.data import DataParams
from open_lm.params.fields import convert, options_of
from open_lm.storage.yaml_json import read_yaml

_LINE = re.compile(r"([a-z][a-z0-9_]*): (.*)")


@dataclass(frozen=True)
class SavedState:
    """The part of one state.json that inspection needs."""

    path: Path
    step: int
    sequences: int
    global_batch_size: int
    world_size: int
    lineage: PlansFile
    params: dict[str, Any]
    model_config: dict[str, Any]
    eot_id: int | None

    @property
    def plan(self) -> dict[str, Any]:
        """The description that was in force when it was saved."""
        return self.lineage.plans[-1]["plan"]


@dataclass(frozen=True)
class RunHistory:
    """A run folder.

    Args:
        folder: of the run.
        params: params.txt as it stands there, text by name.
        states: what is left of its run states, by step.
        plans_file: of the run folder; None in runs of version 0.2 and before.
    """

    folder: Path
    params: Mapping[str, str]
    states: tuple[SavedState, ...]
    plans_file: PlansFile | None = None

    @property
    def lineage(self) -> PlansFile | None:
        """The plans and batch sizes of the run; None where nothing tells them."""
        return self.plans_file or (self.states[-1].lineage if self.states else None)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, None where params.txt is missing."""
        return self._number("total_steps")

    @property
    def seq_len(self) -> int:
        """Tokens of a row less one. Raises ValueError where nothing says it."""
        return self._size("seq_len")

    @property
    def vocab_size(self) -> int:
        """Of the model. Raises ValueError where nothing says it."""
        return self._size("vocab_size")

    @property
    def world_size(self) -> int:
        """Processes of the last start."""
        return self._number("world_size") or (self.states[-1].world_size if self.states else 1)

    def span(self, step: int) -> tuple[int, int]:
        """Number of the first row of a step's batch, and the rows of that batch.

        Raises:
            ValueError: no such step, or the batch size changed near it and no run state is left that says where.
        """
        if step < 1:
            raise ValueError(f"--step {step}: steps are counted from 1, as in the log")
        if self.total_steps is not None and step > self.total_steps:
            raise ValueError(f"--step {step}: beyond the end; {self.folder} has {self.total_steps} steps")
        batch = next((b for b in reversed(self.lineage.batches if self.lineage else ()) if b["step"] < step), None)
        if batch is not None:
            size = batch["global_batch_size"]
            return batch["sequences"] + (step - 1 - batch["step"]) * size, size
        return self._span_by_states(step)

    def _span_by_states(self, step: int) -> tuple[int, int]:
        """The same from the positions of run states, for runs of version 0.2 and before."""
        step_before, number_before = max(((s.step, s.sequences) for s in self.states if s.step < step), default=(0, 0))
        after = next((s for s in self.states if s.step >= step), None)
        if after is None:
            size = self._number("global_batch_size") or (self.states[-1].global_batch_size if self.states else None)
            if size is None:
                raise ValueError(f"--run {self.folder}: neither params.txt nor a run state says the global batch size")
            return number_before + (step - 1 - step_before) * size, size
        size = after.global_batch_size
        if after.sequences - number_before != (after.step - step_before) * size:
            raise ValueError(
                f"--step {step}: the global batch size changed between steps {step_before} and {after.step}, and no run state in between "
                "is left to say where; inspect a step outside of them"
            )
        return after.sequences - (after.step - step + 1) * size, size

    def plan_at(self, number: int) -> tuple[int, int | None, dict[str, Any] | None]:
        """The plan in force at a row: its first row, the first row of the plan after it (None: the last one), and its description.

        The description is None where neither plans.json nor a run state is left.
        """
        if self.lineage is None:
            return 0, None, None
        plans = self.lineage.plans
        place = max(i for i, plan in enumerate(plans) if plan["first"] <= number)
        return plans[place]["first"], plans[place + 1]["first"] if place + 1 < len(plans) else None, plans[place]["plan"]

    def data_params(self, description: dict[str, Any] | None) -> DataParams:
        """The options of the data under which a plan was made: kept with it, else of a run state with this plan, else of params.txt.

        Raises:
            ValueError: neither is there, or an option can't be read.
        """
        kept = next((p["data"] for p in (self.lineage.plans if self.lineage else ()) if p["plan"] == description and "data" in p), None)
        if kept is not None:
            return _data_params(kept)
        with_it = next((s for s in reversed(self.states) if s.plan == description), None)
        values: Mapping[str, Any] = self.params or (self.states[-1].params if self.states else {})
        if with_it is not None:
            values = with_it.params
        return _data_params(values)

    @property
    def started_in(self) -> Path:
        """The folder that relative names of the run's options are meant from, where the log's name tells it; else this one."""
        log = Path(self.params.get("log_path", ""))
        folder = self.folder.resolve()
        parts = log.parent.parts
        if log.is_absolute() or not parts or folder.parts[-len(parts) :] != parts:
            return Path.cwd()
        return Path(*folder.parts[: -len(parts)])

    def _number(self, name: str) -> int | None:
        text = self.params.get(name, "")
        return int(text) if text.isdigit() else None

    def _size(self, name: str) -> int:
        told = self.states[-1].model_config.get(name) if self.states else None
        found = self._number(name) if told is None else int(told)
        if found is None:
            raise ValueError(f"--run {self.folder}: neither params.txt nor a run state says {name}")
        return found


def read_history(run: str | Path) -> RunHistory:
    """Read a run folder.

    Raises:
        ValueError: there is none, or nothing in it says what the run read.
    """
    folder = storage.local_path(str(run))
    if not folder.is_dir():
        raise ValueError(f"--run {run}: no such folder; give that of a run, such as logs/NAME")
    params = _read_params(folder / "params.txt")
    found = [_read_state(path) for path in (folder / "checkpoints").glob("step_*/state.json")]
    states = sorted((s for s in found if s is not None), key=lambda s: s.step)
    if not params and not states:
        raise ValueError(f"--run {run}: is no run folder; neither params.txt nor checkpoints/step_*/state.json is there")
    return RunHistory(folder, params, tuple(states), read_plans(str(folder)))


def fetch_history(run: str, folder: Path) -> None:
    """Copy of a run folder behind a url what `read_history` and inspection read; shards and checkpoints stay there.

    Raises:
        ValueError: none of it is there, or the place can't be read.
    """
    names = ["params.txt", "plans.json", "tokenizer.json", "tokenizer_config.json"]
    try:
        names += [state.url.removeprefix(f"{run.rstrip('/')}/") for state in _listed(storage.join(run, "checkpoints/step_*/state.json"))]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                data = storage.read_bytes(storage.join(run, name))
                storage.write_bytes(str(folder / name), data)
    except OSError as error:
        raise ValueError(f"--run {run}: {error}") from None
    if not any(folder.iterdir()):
        raise ValueError(f"--run {run}: is no run folder; neither params.txt nor checkpoints/step_*/state.json is there")


def _listed(pattern: str) -> list[storage.Stored]:
    try:
        return storage.list_files(pattern)
    except (FileNotFoundError, ValueError):  # nothing was saved there, or a web server, which lists nothing
        return []


def _read_params(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    matches = (_LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {m.group(1): m.group(2) for m in matches if m}


def _read_state(path: Path) -> SavedState | None:
    """None for one that is not whole: the others may still tell."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return SavedState(
            path=path.parent,
            step=int(values["step"]),
            sequences=int(values["sequences"]),
            global_batch_size=int(values["global_batch_size"]),
            world_size=int(values.get("world_size", 1)),
            lineage=plans_of(values),
            params=dict(values["params"]),
            model_config=dict(values["model_config"]),
            eot_id=(values.get("tokenizer") or {}).get("eot_id"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _data_params(values: Mapping[str, Any]) -> DataParams:
    """DataParams from a run state, or from the text of params.txt; options of other versions are left out."""
    found = {}
    for name, option in options_of((DataParams,)).items():
        if name in values:
            value = values[name]
            if isinstance(value, str) and option.is_list:
                value = _list(value if value != "None" else "[]")  # OpenLM's word for no list
            found[name] = convert(option, value)
    return DataParams(**found)


def _list(text: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ValueError(f"params.txt: {text} is no list: {error}") from None
