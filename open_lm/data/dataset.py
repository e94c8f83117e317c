"""From the options to what a run reads: `build_train_data` and `build_validation_data`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from open_lm.data.access import Access, access_of
from open_lm.data.mixing import BLOCK, Mix, whole_shares
from open_lm.data.places import split_parts
from open_lm.data.plan import Plan, Source
from open_lm.data.remote_cost import RemoteCost, local_lines, prepared
from open_lm.data.rows import FileOrderRows, PlannedRows, Rows, SyntheticRows
from open_lm.data.sources import (
    Listing,
    ShardSource,
    bytes_per_token,
    join_shards,
    list_manifest,
    list_pattern,
    open_source,
    shown,
    with_counts,
)
from open_lm.data.stream import beyond_vocabulary
from open_lm.params.data import DataParams, ValidationParams
from open_lm.params.fields import UserError, counted
from open_lm.tokenizer import Holder, Tokenizer, load_tokenizer

_LOOKED_AT = 64
"""Rows of a local validation set whose ids are compared with the vocabulary before anything starts."""


@dataclass(frozen=True, eq=False)
class TrainData:
    """What a run reads and in which order.

    Args:
        rows: for the loader.
        plan: the order; None for synthetic tokens, which have none.
        sources: of the plan.
        streams: L, to be kept in the checkpoint.
        tokenizer: of the shards, None where nothing names it; see `_tokenizer_of`.
        description: all that decides the batches, as JSON values, for the checkpoint; `plan.differences` compares two.
    """

    rows: Rows
    plan: Plan | None
    sources: tuple[ShardSource, ...]
    streams: int
    tokenizer: Tokenizer | None
    description: dict[str, Any]

    @property
    def holders(self) -> list[Holder]:
        """What has ids, and the tokenizers that are known to have made them."""
        return [holder for source in self.sources for holder in source.holders]

    def one_pass(self) -> int | None:
        """The most rows of a run that reads none twice; None when there is no end to them."""
        return self.plan.one_pass() if self.plan else None

    def epoch_rows(self) -> int:
        """The rows of an epoch whose length is not told: until the first source has been read once.

        Raises:
            ValueError: that would leave out more than half of the rows, so the length has to be told.
        """
        rows = self.one_pass() or 0
        if self.plan is None or len(self.plan.sources) == 1:
            return rows
        every, first = sum(s.total for s in self.plan.sources), self._exhausted_first()
        if 2 * rows < every:
            seq_len = self.rows.seq_len
            raise ValueError(
                f"--train-num-samples: needed for this mix; without it an epoch ends when the first source has been read once, which is "
                f"{first.name} with its {first.total} rows, after {rows} rows ({rows * seq_len} tokens) of the {every} ({every * seq_len}) "
                "of all sources; give the tokens of an epoch, with --multiple-data-passes where a source is to be read more than once, "
                "or join small sources with `::`"
            )
        return rows

    def _exhausted_first(self) -> Source:
        assert self.plan is not None
        return min(enumerate(self.plan.sources), key=lambda item: self.plan.mix.number_of(item[0], item[1].total))[1]  # type: ignore[union-attr]

    def check_length(self, rows: int, multiple_data_passes: bool) -> None:
        """Raises ValueError for a plan of which so many rows are read, with more than one pass without `--multiple-data-passes`."""
        if self.plan is None or multiple_data_passes:
            return
        passes = self.plan.passes(rows)
        for source, count in zip(self.plan.sources, passes):
            if count > 1:
                raise ValueError(
                    f"--train-num-samples: the run reads {rows} rows in all, for which {source.name} with its {source.total} rows needs "
                    f"{count} passes; give --multiple-data-passes, or read at most {self.plan.one_pass()} rows "
                    f"({self.plan.one_pass() * self.rows.seq_len} tokens) in all epochs together"
                )

    def dropped_tokens(self) -> tuple[int, ...]:
        """Of each source, the tokens per pass that fill no row: the tails of its sequences."""
        seq_len = self.rows.seq_len
        return tuple(int(s.files.sequences.sum()) * ((s.files.tokens - 1) % seq_len) for s in self.sources)

    def length_lines(self, epoch: int, start: int, stop: int) -> list[str]:
        """How often an epoch and the numbers from `start` to `stop` of the plan read each source, for the log; none with replacement."""
        if self.plan is None or self.plan.replacement:
            return []
        totals = [source.total for source in self.plan.sources]
        one, before, after = (self.plan.rows_before(number) for number in (epoch, start, stop))
        return [
            f"data: {source.name}: {share / total:.4g} passes in {counted(epoch, 'row')} (an epoch), {(b - a) / total:.4g} "
            f"in the {counted(stop - start, 'row')} to read, {a / total:.4g} before"
            for source, total, share, a, b in zip(self.plan.sources, totals, one, before, after)
        ]

    def log_lines(self) -> list[str]:
        """What the log says about the data at the start of a run."""
        if self.plan is None:
            return [f"data: synthetic tokens, {counted(self.streams, 'stream')}"]
        how = "with replacement" if self.plan.replacement else "in passes"
        lines = [
            f"data: {counted(len(self.sources), 'source')} read {how}, {counted(self.streams, 'stream')}, "
            f"windows of {counted(self.plan.window, 'row')}"
        ]
        for source, planned, share, dropped in zip(self.sources, self.plan.sources, self.plan.mix.shares, self.dropped_tokens()):
            holds = f"{counted(len(planned.shard_names), 'shard')}, {counted(planned.total, 'row')}"
            line = f"data: {source.name}: {holds}, {100 * share / BLOCK:.3g} % of every batch on average"
            line += f", {dropped} tokens of a pass fill no row" if dropped else ""
            if source.repeated:
                some = f"{len(source.repeated)} shards are" if len(source.repeated) > 1 else "a shard is"
                line += f"; {some} named more than once ({source.repeated[0]}) and read as often in every pass"
            lines.append(line + ("" if source.tokenizer else f"; '<|endoftext|>' is id {source.files.eot_id}"))
        templates = list(dict.fromkeys(t.chat_template for _, t in self.holders if t and t.chat_template))
        if len(templates) > 1:
            lines.append(f"data: the sources have {len(templates)} chat templates; run and checkpoints carry the first of them")
        lines += local_lines(tuple(source.files for source in self.sources), self.plan.seq_len)
        if isinstance(self.rows, PlannedRows) and self.rows.access.cache:
            lines += RemoteCost.of(self.rows.files, self.streams, self.plan.shards_in_window(), self.rows.access.cache).log_lines()
        return lines


def problems(params: DataParams) -> list[str]:
    """What is wrong with the numbers of weights and factors, a line each; no file is looked at. (`params.check` has the rest.)"""
    if params.dataset_type == "synthetic":
        return []
    found, names = [], params.train_data or params.dataset_manifest
    weights = params.train_data_mix_weights
    if weights and len(weights) != len(names):
        found.append(
            f"--train-data-mix-weights: {counted(len(weights), 'weight')} for {counted(len(names), 'source')}; give one each"
            + ("; a glob in quotes is one source" if join_shards(names) != names else "")
        )
    return found + _factor_problems(params, sum(len(split_parts(name)) for name in names))


def _factors(params: DataParams) -> list[float]:
    """The upsampling factor of each `::` part. Raises ValueError for a word that is no number."""
    return [float(word) for text in params.train_data_upsampling_factors for word in text.split("::")]


def _factor_problems(params: DataParams, parts: int) -> list[str]:
    name, found = "--train-data-upsampling-factors", []
    try:
        factors = _factors(params)
    except ValueError:
        return [f"{name} {' '.join(params.train_data_upsampling_factors)}: give one number for each `::` part"]
    if factors and len(factors) != parts:
        found.append(f"{name}: {counted(len(factors), 'factor')} for {parts} `::` parts; give one each")
    return found + [f"{name} {f}: must be positive" for f in factors if not 0 < f < float("inf")]


def source_patterns(params: DataParams, saved: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The sources that options name. Single shards of a folder are one source, unless weights or manifests are given for each of them.

    saved: the plan of a run that goes on; one that was begun with a source for each name (by version 0.3 and before) stays so.
    """
    names = params.train_data or params.dataset_manifest
    apart = params.train_data_mix_weights or params.dataset_manifest or len((saved or {}).get("sources", ())) == len(names)
    return names if apart else join_shards(names)


def build_train_data(
    params: DataParams, *, seq_len: int, vocab_size: int, global_batch_size: int, saved: Mapping[str, Any] | None = None
) -> TrainData:
    """Open the sources and make the plan.

    Args:
        params: for a resumed run with `data_streams` from its checkpoint.
        seq_len: tokens of a row less one.
        vocab_size: ids from here on are an error.
        global_batch_size: the default number of streams.
        saved: the description of the plan of a run that goes on.

    Raises:
        UserError: with every problem found.
    """
    found = problems(params)
    if found:
        raise UserError(found)
    streams = params.data_streams or global_batch_size
    if params.dataset_type == "synthetic":
        description = {"seed": params.seed, "seq_len": seq_len, "vocab_size": vocab_size, "sources": []}
        return TrainData(SyntheticRows(params.seed, seq_len, vocab_size), None, (), streams, None, description)
    access = access_of(params)
    sources = _open_sources(params, source_patterns(params, saved), seq_len, access)
    plan = make_plan(params, sources, seq_len, streams)
    tokenizer = _tokenizer_of(sources)
    description = {**plan.describe(), "tokenizer_sha256": tokenizer.sha256 if tokenizer else None}
    files = tuple(s.files for s in sources)
    access = prepared(access, files)
    return TrainData(PlannedRows(plan, files, vocab_size, access), plan, sources, streams, tokenizer, description)


def _tokenizer_of(sources: tuple[ShardSource, ...]) -> Tokenizer | None:
    """What run and checkpoints carry: of the sources' tokenizers the one with most ids, with the first chat template that there is."""
    known = [source.tokenizer for source in sources if source.tokenizer]
    if not known:
        return None
    chosen = max(known, key=lambda tokenizer: tokenizer.vocab_size)
    of_chats = next((t for source in sources for _, t in source.holders if t and t.chat_template), None)
    if of_chats and of_chats.chat_template != chosen.chat_template and chosen.means_the_same(of_chats):
        chosen.chat_template, chosen.special = of_chats.chat_template, of_chats.special
    return chosen


def _open_sources(params: DataParams, names: Sequence[str], seq_len: int, access: Access) -> tuple[ShardSource, ...]:
    """Every source; their problems are gathered."""
    tokenizer = load_tokenizer(params.tokenizer) if params.tokenizer else None
    flag = "--train-data" if params.train_data else "--dataset-manifest"
    found: list[str] = []
    sources: list[ShardSource] = []
    for index, name in enumerate(names):
        try:
            listing = list_pattern(flag, name, access) if params.train_data else list_manifest(flag, name, access.lose_shards)
            if params.train_data and params.dataset_manifest:
                listing = with_counts(listing, params.dataset_manifest[index])
            sources.append(open_source(flag, listing, seq_len=seq_len, key=params.data_key, tokenizer=tokenizer, access=access))
        except (ValueError, OSError) as error:
            found.append(_with_flag(flag, shown(name), error))
    if found:
        raise UserError(found)
    return tuple(sources)


def _with_flag(flag: str, name: str, error: Exception) -> str:
    """What an error says; one of the storage doesn't know by which option its url came."""
    return str(error) if str(error).startswith("--") else f"{flag} {name}: {error}"


def make_plan(params: DataParams, sources: tuple[ShardSource, ...], seq_len: int, streams: int) -> Plan:
    """The plan of some opened sources. Raises ValueError for impossible weights."""
    factors, planned = iter(_factors(params)), []
    for source in sources:
        by_part = [next(factors, 1.0) for _ in range(int(source.parts[-1]) + 1)]
        rows = source.files.sequences * ((source.files.tokens - 1) // seq_len)
        names = tuple(path.name for path in source.files.paths)
        factors_of_shards = np.array(by_part, dtype=np.float64)[source.parts]
        planned.append(Source(source.name, names, rows, factors_of_shards, Source.content_of(source.files.sha256)))
    shares = whole_shares(params.train_data_mix_weights or [source.total for source in planned])
    window = 1 if params.disable_buffer else params.shuffle_window
    return Plan(tuple(planned), Mix(params.seed, streams, shares), params.dataset_resampled, window, seq_len)


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """The rows of one `--val-data`, in file order, its source, and the bytes of text for each token where they are known."""

    name: str
    rows: FileOrderRows
    source: ShardSource
    bytes_per_token: float | None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Of its shards."""
        return self.source.tokenizer

    def batches(self, global_batch_size: int) -> int:
        """Batches of so many rows, the last one filled up with masked rows."""
        return -(-self.rows.count // global_batch_size)


def build_validation_data(
    params: ValidationParams, *, seq_len: int, vocab_size: int, tokenizer: str | None = None, access: Access | None = None
) -> tuple[ValidationSet, ...]:
    """Open every validation set.

    Args:
        tokenizer: `--tokenizer`, for shards that have none beside them.
        access: how shards are reached, as for training.

    Raises:
        UserError: with every problem found.
    """
    keys, found, sets = params.val_data_key, [], []
    if len(keys) not in (0, 1, len(params.val_data)):
        raise UserError([f"--val-data-key: {counted(len(keys), 'key')} for {counted(len(params.val_data), 'set')}; give one, or one each"])
    if params.val_num_samples is not None and params.val_num_samples < seq_len:
        raise UserError([f"--val-num-samples {params.val_num_samples}: is in tokens, and less than one row of {seq_len}"])
    known = load_tokenizer(tokenizer) if tokenizer else None
    access = replace(access or Access(), lose_shards=False, lose_members=False)
    for index, name in enumerate(params.val_data):
        key = keys[min(index, len(keys) - 1)] if keys else None
        try:
            listing: Listing = list_pattern("--val-data", name, access)
            if listing.repeated:
                raise ValueError(f"--val-data {listing.name}: names {listing.repeated[0]} twice; name each shard once")
            source = open_source("--val-data", listing, seq_len=seq_len, key=key, tokenizer=known, access=access)
        except (ValueError, OSError) as error:
            found.append(_with_flag("--val-data", name, error))
            continue
        ends = np.cumsum(source.files.sequences * ((source.files.tokens - 1) // seq_len))
        limit = int(ends[-1]) if params.val_num_samples is None else params.val_num_samples // seq_len
        here = prepared(access, (source.files,))
        rows = FileOrderRows(source.files, ends, min(int(ends[-1]), limit), seq_len, vocab_size, here)
        whole = rows.count == int(ends[-1])
        per_token = bytes_per_token(listing.shards, int(source.files.sequences.sum())) if whole else None
        sets.append(ValidationSet(name, rows, source, per_token))
    if found:
        raise UserError(found)
    return tuple(sets)


def check_ids(flag: str, sources: Iterable[ShardSource], sets: Iterable[ValidationSet], vocab_size: int) -> None:
    """Compare the first ids of all data with the vocabulary; of a local validation set, which is read late, those of more rows.

    Args:
        flag: of the sources.

    Raises:
        UserError: with a line for each that has ids beyond it.
    """
    found = []
    read_late: list[tuple[str, ShardSource, FileOrderRows | None]] = [(f"--val-data {one.name}", one.source, one.rows) for one in sets]
    for name, source, rows in [*((f"{flag} {source.name}", source, None) for source in sources), *read_late]:
        highest, shard, member = source.highest
        try:
            if highest >= vocab_size:
                raise ValueError(beyond_vocabulary(shard, member, highest, vocab_size))
            if rows and not source.files.remote:
                reader = rows.reader(1)
                reader.read(np.arange(min(rows.count, _LOOKED_AT)))
                reader.close()
        except (ValueError, OSError) as error:
            found.append(f"{name}: {error}")
    if found:
        raise UserError(found)
