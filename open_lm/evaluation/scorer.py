"""Requests through the model: perplexity of the continuation and whether it is the greedy one.

Neighbours in the list that begin alike (the choices of one question) are a group: what they share is read once, and each goes on from
its keys and values. Groups are sorted by length and batched by padded tokens, so that little is padding; the hidden states that predict
continuation tokens alone go through the output head. Padding stands at the right, where causal attention keeps it from mattering.
With several processes each scores its share of the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from open_lm.evaluation.hf_model import HFModel
from open_lm.evaluation.icl import Request, Score
from open_lm.evaluation.precision import Precision, autocast
from open_lm.evaluation.processes import Processes
from open_lm.model.cache import KeyValueCache
from open_lm.model.head import token_losses
from open_lm.model.transformer import Transformer
from open_lm.progress import Progress

PAD = 0


@dataclass(frozen=True)
class ScorerOptions:
    """How requests are run; none of it changes a score but the precision."""

    batch_tokens: int | None = None
    """Padded tokens of a batch; one group is always taken, however long. None: 16384, but 1024 for scoring on a CPU, whose caches hold
    what a model makes of so many."""
    precision: Precision = "fp32"
    processes: Processes = field(default_factory=Processes)

    def scored_tokens(self, device: torch.device) -> int:
        """Of a batch that is read once."""
        return self.batch_tokens or (1024 if device.type == "cpu" else 16384)

    @property
    def generated_tokens(self) -> int:
        """Of a batch that is read and continued; each step reads the weights once for all of its rows, so that wide ones are cheap."""
        return self.batch_tokens or 16384


class Shape(NamedTuple):
    """Tokens that a group reads: `prefix` once, then up to `branch` in each of `rows`."""

    prefix: int
    rows: int = 1
    branch: int = 0


class Group(NamedTuple):
    """Requests (indices) whose first `prefix` ids are the same; the last id of a request predicts nothing and is read by none."""

    prefix: int
    members: list[int]


def group_requests(requests: Sequence[Request], share: bool) -> list[Group]:
    """Groups of neighbours that share half of their ids or more; every request alone without `share`."""
    groups: list[Group] = []
    for index, request in enumerate(requests):
        read = request.input_ids[:-1]
        if share and groups:
            prefix, members = groups[-1]
            common = _common(requests[members[0]].input_ids[:prefix], read)
            if common and 2 * common >= max(len(read), *(len(requests[i].input_ids) - 1 for i in members)):
                groups[-1] = Group(common, [*members, index])
                continue
        groups.append(Group(len(read), [index]))
    return groups


def _common(a: list[int], b: list[int]) -> int:
    """How many ids the two have in common at their beginning."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def plan_batches(shapes: Sequence[Shape], batch_tokens: int) -> list[list[int]]:
    """Indices of shapes, longest first, in batches of at most `batch_tokens` padded tokens, prefixes and branches each (or one shape)."""
    order = sorted(range(len(shapes)), key=lambda index: (-shapes[index].prefix, -shapes[index].branch, index))
    batches: list[list[int]] = []
    rows = branch = 0
    for index in order:
        shape = shapes[index]
        rows, branch = rows + shape.rows, max(branch, shape.branch)
        if batches and max((len(batches[-1]) + 1) * shapes[batches[-1][0]].prefix, rows * branch) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            rows, branch = shape.rows, shape.branch
    return batches


def score_requests(model: nn.Module, requests: Sequence[Request], options: ScorerOptions, what: str = "scoring") -> list[Score]:
    """Scores in the order of the requests; equal requests are scored once, so that they tie. `model` is left as it is and should be in
    eval mode. `what` is that for `Progress`.
    """
    keys = [(tuple(request.input_ids), request.start) for request in requests]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    scores = _score_all(model, [Request(list(ids), start) for ids, start in places], options, what)
    return [scores[places[key]] for key in keys]


def _score_all(model: nn.Module, requests: Sequence[Request], options: ScorerOptions, what: str) -> dict[int, Score]:
    groups = group_requests(requests, share=isinstance(model, Transformer))
    shapes = [Shape(g.prefix, len(g.members), max(len(requests[i].input_ids) - 1 - g.prefix for i in g.members)) for g in groups]
    found: dict[int, Score] = {}
    device = next(model.parameters()).device
    batches = plan_batches(shapes, options.scored_tokens(device))
    with Progress(what, len(batches) // options.processes.count, "batches") as shown:
        for batch in options.processes.share(batches):
            found.update(_score_batch(model, requests, [groups[i] for i in batch], options.precision))
            shown.done += 1
    return options.processes.merge(found)


@torch.no_grad()
def _score_batch(model: nn.Module, requests: Sequence[Request], groups: Sequence[Group], precision: Precision) -> dict[int, Score]:
    device = next(model.parameters()).device
    members = [index for group in groups for index in group.members]
    prefixes, branches = _passes(requests, groups)
    cache = None
    if branches.width:
        cache = KeyValueCache()
        lengths = torch.tensor([group.prefix for group in groups], device=device)
        cache.real = torch.arange(prefixes.width, device=device) < lengths[:, None]
    with autocast(device, precision):
        parts = [_run(model, prefixes, device, cache)]
        if cache is not None:
            rows = torch.tensor([row for row, group in enumerate(groups) for _ in group.members], device=device)
            parts.append(_run(model, branches, device, cache.branches(rows)))
    owners, losses, correct = (torch.cat(column) for column in zip(*parts, strict=True))
    zeros = torch.zeros(len(members), dtype=torch.float32, device=device)
    counts = torch.bincount(owners, minlength=len(members))
    sums = zeros.index_add(0, owners, losses.float())
    wrong = zeros.index_add(0, owners, (~correct).float())
    columns = (torch.exp(sums / counts).tolist(), wrong.tolist(), sums.tolist())
    return {index: Score(p, w == 0, loss) for index, p, w, loss in zip(members, *columns, strict=True)}


@dataclass
class _Pass:
    """One pass of the model: rows of ids, and for each of n continuation tokens the row and place that predict it, its id, its request."""

    rows: list[list[int]]
    width: int
    places: list[tuple[int, int]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def predict(self, row: int, place: int, target: int, owner: int) -> None:
        self.places.append((row, place))
        self.targets.append(target)
        self.owners.append(owner)


def _passes(requests: Sequence[Request], groups: Sequence[Group]) -> tuple[_Pass, _Pass]:
    """What is read once for each group, and what once for each request."""
    firsts = [requests[group.members[0]].input_ids[: group.prefix] for group in groups]
    prefixes = _Pass(firsts, max(1, *map(len, firsts)))
    rests = [requests[index].input_ids[group.prefix : -1] for group in groups for index in group.members]
    branches = _Pass(rests, max(map(len, rests)))
    owner = 0
    for row, group in enumerate(groups):
        for index in group.members:
            request = requests[index]
            for place in range(request.start - 1, len(request.input_ids) - 1):
                target = request.input_ids[place + 1]
                if place < group.prefix:
                    prefixes.predict(row, place, target, owner)
                else:
                    branches.predict(owner, place - group.prefix, target, owner)
            owner += 1
    return prefixes, branches


def _run(model: nn.Module, one: _Pass, device: torch.device, cache: KeyValueCache | None) -> tuple[Tensor, Tensor, Tensor]:
    """For each of n continuation tokens: its request [n], loss [n] and whether it is the first choice [n]."""
    input_ids = torch.full((len(one.rows), one.width), PAD, dtype=torch.int64)
    for row, ids in enumerate(one.rows):
        input_ids[row, : len(ids)] = _int64(ids)
    input_ids = input_ids.to(device)
    positions = _int64([row * one.width + place for row, place in one.places]).to(device)
    targets, owners = _int64(one.targets).to(device), _int64(one.owners).to(device)
    if isinstance(model, HFModel):
        return owners, *model.token_losses(input_ids, positions, targets)

    def head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return token_losses(hidden.flatten(0, 1)[positions], weight, targets)

    more = {} if cache is None else {"cache": cache}  # a wrapped model may not know of one
    return owners, *model(input_ids, head=head, **more)


def _int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
