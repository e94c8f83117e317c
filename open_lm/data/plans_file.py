"""`plans.json` of a run folder: the plans and batch sizes of the run, oldest first, with all that opens and explains them again.

    {"plans": [{"first": row, "plan": description, "data": options, "sources": [{"name", "bytes"}]}, ...],
     "batches": [{"step", "sequences", "tokens", "global_batch_size", "seq_len"}, ...], "total_steps": n}

`first` is the number of the plan's first row; `data` are the options of the data that differ from their defaults; `sources` are named
as in the metrics, with the bytes of their shards, null where these are not known. Step, sequences and tokens of a batch size are
those before its first step. Every run state holds the same two lists; the file is there from the first step of a run on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_lm import storage
from open_lm.data.places import split_parts
from open_lm.data.source_names import source_names
from open_lm.params.data import DataParams

if TYPE_CHECKING:
    from open_lm.data.dataset import TrainData

PLANS = "plans.json"
_NO_PART = ("new_data_plan", "workers")
"""Options that say nothing about the data themselves."""


@dataclass(frozen=True)
class PlansFile:
    """What the file says; see above."""

    plans: tuple[dict[str, Any], ...]
    batches: tuple[dict[str, int], ...]
    total_steps: int | None = None


def about_plan(params: DataParams, data: TrainData) -> dict[str, Any]:
    """`data` and `sources` of a plan's entry."""
    default = DataParams()
    names = [f.name for f in fields(DataParams) if f.name not in _NO_PART and getattr(params, f.name) != getattr(default, f.name)]
    options = {name: list(value) if isinstance(value := getattr(params, name), tuple) else value for name in names}
    sizes = [None if None in s.files.bytes else sum(filter(None, s.files.bytes)) for s in data.sources]
    patterns = [s.name for s in data.sources]
    named = source_names(patterns if len(patterns) > 1 else ["/".join(split_parts(p)[0].split("/")[-3:]) for p in patterns])
    return {"data": options, "sources": [{"name": name, "bytes": size} for name, size in zip(named, sizes, strict=True)]}


def write_plans(folder: Path, plans: Sequence[Mapping[str, Any]], batches: Sequence[Mapping[str, int]], total_steps: int) -> None:
    """Write the file into a run folder; an existing one is replaced."""
    with storage.atomic_write(folder / PLANS, "w") as file:
        json.dump({"plans": list(plans), "batches": list(batches), "total_steps": total_steps}, file, indent=1)


def read_plans(folder: str) -> PlansFile | None:
    """Of a run folder, local or behind a url; None where there is none, or none that can be read: run states may still tell."""
    try:
        values = json.loads(storage.read_bytes(storage.join(folder, PLANS)))
        return plans_of(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def plans_of(values: Mapping[str, Any]) -> PlansFile:
    """From the JSON of the file or of a run state. Raises KeyError, TypeError or ValueError where it is neither."""
    plans = values.get("plans") or [{"first": 0, "plan": values["plan"]}]
    kept = tuple({**p, "first": int(p["first"]), "plan": dict(p["plan"])} for p in plans)
    batches = tuple({name: int(number) for name, number in b.items()} for b in values.get("batches") or ())
    total = values.get("total_steps")
    return PlansFile(kept, batches, int(total) if total is not None else None)
