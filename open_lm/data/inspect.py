"""What was in a batch: the rows of any step of any run, with their tokens, shards and documents, from the run folder alone.

    batch("logs/NAME", 1234)            -> InspectedBatch: of each row the tokens, int32 [seq_len + 1], their shard, their documents
    RunData("logs/NAME").order(1, 101)  -> uint32 [100, global batch, 3]: source, shard of the source, row of the shard

Needs neither torch.distributed nor a device. The data must be those that the run read: its plan is made again and compared with what
the run wrote down, and a difference is a ValueError in words.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from open_lm import storage
from open_lm.data.dataset import TrainData, build_train_data, source_patterns
from open_lm.data.documents import Documents, Piece
from open_lm.data.history import RunHistory, fetch_history, read_history
from open_lm.data.places import split_parts
from open_lm.data.plan import differences, fingerprint
from open_lm.data.sources import shown
from open_lm.params.data import DataParams
from open_lm.params.fields import UserError, counted
from open_lm.shards.index import ShardIndex, list_members, read_index
from open_lm.shards.members import MASKED, split_name
from open_lm.tokenizer import TOKENIZER, Tokenizer, check_match, load_tokenizer

SYNTHETIC = "synthetic tokens: a function of seed and number, from no shard and no document"


@dataclass(frozen=True, eq=False)
class InspectedRow:
    """One row of a batch.

    Args:
        slot: in the global batch, from 0.
        number: of the row in the run, from 0.
        source, shard, row: the source, the shard of the source, the row of the shard, from 0 each; -1 for synthetic tokens.
        source_name: as the run's options name it.
        shard_name: path or URL.
        member: name in the shard, with `[i]` where it holds several sequences; "" where it is not known.
        sequence: of the shard.
        begin: token of the sequence that the row begins at.
        tokens: int32 [seq_len + 1] as the loader gives them, before any loss mask.
        pieces: the documents, None where nothing is known of them.
    """

    slot: int
    number: int
    source: int
    shard: int
    row: int
    source_name: str
    shard_name: str
    member: str
    sequence: int
    begin: int
    tokens: np.ndarray
    pieces: tuple[Piece, ...] | None


@dataclass(frozen=True, eq=False)
class InspectedBatch:
    """The rows of one step, or one process's part of them.

    Args:
        first: number of the first row of the global batch in the run.
        rows: in the order of their slots.
        order: how the run reads, in words.
        notes: what a reader should know: what is missing, what was not compared.
        tokenizer: of the shards, None where there is none.
    """

    run: str
    step: int
    first: int
    global_batch_size: int
    rank: int
    world_size: int
    rows: tuple[InspectedRow, ...]
    order: str
    notes: tuple[str, ...]
    tokenizer: Tokenizer | None

    @property
    def tokens(self) -> np.ndarray:
        """int32 [rows, seq_len + 1]."""
        return np.stack([row.tokens for row in self.rows])


def batch(
    run: str | Path, step: int, *, rank: int = 0, world_size: int = 1, slots: Sequence[int] = (), allow_pipe: bool = False
) -> InspectedBatch:
    """The batch of one step of a run; see `RunData` and `RunData.batch`."""
    return RunData(run, allow_pipe).batch(step, rank=rank, world_size=world_size, slots=slots)


@dataclass(frozen=True, eq=False)
class _Opened:
    """The data of one plan, whose positions from 0 on are rows [first, stop) of the run.

    Args:
        names: of its sources as the run gave them.
        plan: its name.
    """

    first: int
    stop: int | None
    data: TrainData
    names: tuple[str, ...]
    notes: tuple[str, ...]
    plan: str


class RunData:
    """The data of a run, opened again.

    Args:
        run: its folder, or its url, of which what says what was read is copied into a temporary folder.
        allow_pipe: run the commands of its `pipe:` shards; they come from the run folder, so only where that is yours.

    Raises:
        ValueError: no run.
    """

    def __init__(self, run: str | Path, allow_pipe: bool = False):
        self._allow_pipe = allow_pipe
        folder = str(run)
        if storage.is_remote(folder):
            self._copy = tempfile.TemporaryDirectory()  # there as long as this object
            folder = self._copy.name
            fetch_history(str(run), Path(folder))
        self.history: RunHistory = read_history(folder)
        self._name = str(run)
        self._opened: dict[int, _Opened] = {}
        self._documents = Documents()
        self._members: dict[tuple[Path, str], _Members] = {}

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1, slots: Sequence[int] = ()) -> InspectedBatch:
        """The batch of one step.

        Args:
            step: as the log counts it, from 1; made already or not.
            rank, world_size: the process whose part is meant; by default the whole global batch.
            slots: only these slots of the global batch.

        Raises:
            ValueError: no such step, process or slot; the data are gone, or not those that the run read; a shard can't be read.
        """
        first, size = self.history.span(step)
        wanted = _slots(rank, world_size, size, slots)
        opened = self._open(first)
        numbers = first + wanted
        reader = opened.data.rows.reader(opened.data.streams)
        try:
            tokens = reader.read(numbers - opened.first)
        except OSError as error:
            raise ValueError(f"--step {step}: {error}") from None
        finally:
            reader.close()
        notes: list[str] = []
        rows = [self._row(opened, int(s), int(n), t, notes) for s, n, t in zip(wanted, numbers, tokens, strict=True)]
        notes = list(dict.fromkeys([*opened.notes, *notes]))
        order = _in_words(opened.data, opened.plan)
        return InspectedBatch(
            self._name, step, first, size, rank, world_size, tuple(rows), order, tuple(notes), self._tokenizer(opened.data)
        )

    def order(self, start: int, stop: int) -> np.ndarray:
        """The order of the steps start <= step < stop, without reading any row.

        Returns:
            [steps, global batch, 3] in the order of the slots: source, shard of the source, row of the shard; uint32, or uint64 where
            a number needs it.

        Raises:
            ValueError: no such step, no order (synthetic tokens), two batch sizes, or data that are not those of the run.
        """
        if stop <= start:
            raise ValueError(f"--steps {start}:{stop}: names no step; give first:end, the end not included")
        spans = [self.history.span(step) for step in range(start, stop)]
        size = spans[0][1]
        other = next((start + i for i, span in enumerate(spans) if span[1] != size), None)
        if other is not None:
            raise ValueError(
                f"--steps {start}:{stop}: the global batch size changes at step {other}; give the steps before and after apart"
            )
        at, end, parts = spans[0][0], spans[-1][0] + size, []
        while at < end:
            opened = self._open(at)
            until = end if opened.stop is None else min(end, opened.stop)
            parts.append(_located(opened.data, at - opened.first, until - opened.first))
            at = until
        found = np.concatenate(parts).reshape(stop - start, size, 3)
        return found.astype(np.uint32 if int(found.max()) < 1 << 32 else np.uint64)

    def shard_name(self, step: int, source: int, shard: int) -> str:
        """Path or URL of a shard as the order of a step numbers it, or its numbers where there is no such shard."""
        sources = self._open(self.history.span(step)[0]).data.sources
        if source < len(sources) and shard < len(sources[source].files.paths):
            return str(sources[source].files.paths[shard])
        return f"shard {shard} of source {source}"

    def _open(self, number: int) -> _Opened:
        """The data of the plan in force at a row."""
        first, stop, saved = self.history.plan_at(number)
        if first not in self._opened:
            params = self.history.data_params(saved)
            size = self.history.span(1)[1] if saved is None else 1
            sizes = {"seq_len": saved["seq_len"] if saved else self.history.seq_len, "vocab_size": self.history.vocab_size}
            try:
                data = build_train_data(self._as_here(params, saved), global_batch_size=size, saved=saved, **sizes)
            except UserError as error:
                raise UserError([f"{self._name}: the data of the run can't be opened: {problem}" for problem in error.problems]) from None
            names = tuple(map(shown, source_patterns(params, saved)))
            notes = (*self._compare(data, saved, number, params.allow_tokenizer_mismatch), *_about_masks(params))
            self._opened[first] = _Opened(first, stop, data, names, notes, fingerprint(saved or data.description)[:12])
        return self._opened[first]

    def _as_here(self, params: DataParams, saved: dict | None) -> DataParams:
        """The options with which the plan is made again in this folder."""
        streams = params.data_streams or (saved.get("streams") if saved else None)
        base = self.history.started_in
        own = self.history.folder / "tokenizer.json"
        cache = _from(base, params.data_cache) if params.data_cache else ""
        locks = "" if not cache or storage.is_remote(cache) else storage.local_path(cache) / "locks"  # a cache that shards were read into
        usable = bool(locks) and os.access(locks, os.W_OK)
        named = str(own) if params.tokenizer and own.is_file() else params.tokenizer  # a name on a hub needs no network then
        return replace(
            params,
            data_streams=streams,
            allow_pipe=self._allow_pipe,
            data_cache=cache if usable else None,  # what isn't there is not made, and its size is this machine's to choose
            data_cache_size=None,
            tokenizer=named,
            train_data=tuple(_from(base, name) for name in params.train_data),
            dataset_manifest=tuple(_from(base, name) for name in params.dataset_manifest),
        )

    def _compare(self, data: TrainData, saved: dict | None, number: int, allow: bool) -> tuple[str, ...]:
        own, told = self._own_tokenizer(), (saved or {}).get("tokenizer_sha256")
        ours = own is not None and told in (None, own.sha256)  # or else the run has gone on with another one since
        different = check_match([(f"--run {self._name}", own), *data.holders], allow=True) if ours and not allow else []
        if different:
            raise ValueError(f"--run {self._name}: row {number} can't be shown as text of the run: {'; '.join(different)}")
        if saved is None:
            return ("no run state is left, so nothing says whether these are the data that the run read",)
        changed = differences(saved, data.description, tokenizer_compared=ours)
        if changed:
            raise ValueError(
                f"--run {self._name}: row {number} can't be shown, because the data are not what the run read there: {'; '.join(changed)}"
            )
        return ()

    def _own_tokenizer(self) -> Tokenizer | None:
        return load_tokenizer(str(self.history.folder)) if (self.history.folder / TOKENIZER).is_file() else None

    def _tokenizer(self, data: TrainData) -> Tokenizer | None:
        return data.tokenizer or self._own_tokenizer()

    def _row(self, opened: _Opened, slot: int, number: int, tokens: np.ndarray, notes: list[str]) -> InspectedRow:
        """A row with its place and documents; what is not known of it goes to `notes`."""
        data = opened.data
        if data.plan is None:
            notes.append(SYNTHETIC)
            return InspectedRow(slot, number, -1, -1, -1, "synthetic", "", "", number, 0, tokens, None)
        source, shard, row = data.plan.locate(number - opened.first)
        file = data.sources[source].files[shard]
        seq_len = data.plan.seq_len
        sequence, part = divmod(row, (file.tokens - 1) // seq_len)
        name, begin = _absolute(str(data.sources[source].files.paths[shard])), part * seq_len
        pieces = self._documents.of_row(name, file.sequences, sequence, begin, begin + seq_len + 1)
        if isinstance(pieces, str):
            notes.append(pieces)
        told = opened.names[source]
        known, member = None if isinstance(pieces, str) else pieces, ""
        if (tokens == MASKED).all():
            notes.append(f"row {number} is masked throughout: it is padding, or it can't be read and the run's options allow that")
        else:
            member = self._member(name, file.key, sequence)
        return InspectedRow(slot, number, source, shard, row, told, name, member, sequence, begin, tokens, known)

    def _member(self, shard: str, key: str, sequence: int) -> str:
        if not shard.startswith("/"):
            return ""
        place = Path(shard), key
        if place not in self._members:
            self._members[place] = _Members(*place)
        return self._members[place].name_of(sequence)


class _Members:
    """The names of a local shard's token members, and which sequence lies in which."""

    def __init__(self, shard: Path, key: str):
        self._names = [name for name, _, _ in list_members(shard) if (split_name(name) or ("", ""))[1] == key]
        self._index: ShardIndex | None = read_index(shard, key) if key == "npy" else None

    def name_of(self, sequence: int) -> str:
        if self._index is None:
            return self._names[sequence]
        member, place = self._index.member_of(sequence)
        return f"{self._names[member]}[{place}]"


def _slots(rank: int, world_size: int, size: int, only: Sequence[int]) -> np.ndarray:
    """int64: the slots of a process in a batch of `size` rows, or those of them that are wanted."""
    if world_size < 1 or size % world_size:
        allowed = ", ".join(str(n) for n in range(1, size + 1) if math.gcd(n, size) == n)
        raise ValueError(f"--world-size {world_size}: doesn't divide the global batch of {size} rows; give one of {allowed}")
    if not 0 <= rank < world_size:
        raise ValueError(f"--rank {rank}: give 0 to {world_size - 1}, or another --world-size")
    slots = np.arange(rank, size, world_size)
    missing = sorted(set(only) - set(slots.tolist()))
    if missing:
        whose = (
            f"process {rank} of {world_size} has slots {rank}, {rank + world_size}, ..." if world_size > 1 else f"slots are 0 to {size - 1}"
        )
        raise ValueError(f"--slots {missing[0]}: {whose}")
    return np.array(sorted(set(only)), dtype=np.int64) if only else slots


def _about_masks(params: DataParams) -> tuple[str, ...]:
    flags = {"--target-mask-left": params.target_mask_left, "--target-mask-individual": params.target_mask_individual}
    given = " and ".join(f"{flag} {token}" for flag, token in flags.items() if token is not None)
    return (f"the run masks targets ({given}); the tokens are shown as they lie in the shards, without that",) if given else ()


def _located(data: TrainData, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start, 3]: source, shard and row at positions [start, stop) of a plan."""
    if data.plan is None:
        raise ValueError(f"--order-file: {SYNTHETIC}; there is no order to write")
    out, streams = np.empty((stop - start, 3), dtype=np.int64), data.plan.streams
    for stream in range(streams):
        low, high = (-(-(number - stream) // streams) for number in (start, stop))
        if low < high:
            found = data.plan.rows_of_stream(stream, low, high)
            out[low * streams + stream - start :: streams] = np.stack([found.source, found.shard, found.row], axis=1)
    return out


def _in_words(data: TrainData, name: str) -> str:
    if data.plan is None:
        return f"synthetic tokens, seed {data.description['seed']}"
    how = "with replacement" if data.plan.replacement else "in passes without replacement"
    plan, count = data.plan, len(data.sources)
    return (
        f"{counted(count, 'source')} {how}, {counted(plan.streams, 'stream')}, windows of {counted(plan.window, 'row')}, "
        f"seed {plan.mix.seed}, plan {name}"
    )


def _from(base: Path, names: str) -> str:
    """Relative parts of `a::b` as meant from a folder."""
    parts = split_parts(names)
    return "::".join(p if storage.is_remote(p) or p.startswith(("/", "~", "pipe:")) or "://" in p else f"{base}/{p}" for p in parts)


def _absolute(shard: str) -> str:
    return shard if storage.is_remote(shard) or shard.startswith("pipe:") else str(Path(shard).absolute())
