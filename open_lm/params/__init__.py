"""Every option of a training run: topics (`data`, `training`, `run`), the way from flags and files to them (`fields`), checks (`check`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from open_lm.params.check import ABSENT, MOOT, TOPICS, find_problems
from open_lm.params.data import BatchParams, DataParams, ValidationParams
from open_lm.params.ending import EndingParams
from open_lm.params.fields import Problems, UserError, parse_topics
from open_lm.params.run import CheckpointParams, LogParams
from open_lm.params.training import AveragingParams, ModelParams, OptimizerParams, ParallelParams

__all__ = [
    "AveragingParams",
    "BatchParams",
    "CheckpointParams",
    "DataParams",
    "EndingParams",
    "LogParams",
    "ModelParams",
    "OptimizerParams",
    "ParallelParams",
    "Params",
    "Problems",
    "UserError",
    "ValidationParams",
    "parse_params",
]


@dataclass(frozen=True)
class Params:
    """All topics of a run. A component receives its own topic, never this whole."""

    data: DataParams
    validation: ValidationParams
    batch: BatchParams
    model: ModelParams
    optimizer: OptimizerParams
    averaging: AveragingParams
    parallel: ParallelParams
    checkpoint: CheckpointParams
    log: LogParams
    ending: EndingParams

    def flat(self) -> dict[str, Any]:
        """Every option by name, lists for tuples: what params.txt and checkpoints hold."""
        return {n: list(v) if isinstance(v, tuple) else v for topic in asdict(self).values() for n, v in topic.items()}

    def changed(self) -> dict[str, Any]:
        """The same of those that differ from their defaults, sorted."""
        default = {name: value for topic in asdict(self) for name, value in asdict(type(getattr(self, topic))()).items()}
        return {n: v for n, v in sorted(self.flat().items()) if v != (list(default[n]) if isinstance(v, list) else default[n])}


def parse_params(argv: Sequence[str] | None = None) -> tuple[Params, list[str]]:
    """The options of `open_lm.main` and warnings about flags without effect.

    Raises:
        UserError: with every problem of the command line and the files.
    """
    about = {"prog": "open_lm.main", "description": "Train a language model on tokenized tar shards."}
    topics, warnings = parse_topics(TOPICS, argv, moot=MOOT, absent=ABSENT, **about)
    problems = list(find_problems(topics))
    if problems:
        raise UserError(problems)
    return Params(*(topics[t] for t in TOPICS)), warnings
