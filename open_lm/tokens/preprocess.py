"""Text to shards, from beginning to end: list, plan, tokenize units, share out buckets, write shards, account for every token."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_lm import storage
from open_lm.shards.manifest import MANIFEST, write_manifest
from open_lm.tokenizer import FastEncoder, Tokenizer, load_tokenizer
from open_lm.tokens import shuffle
from open_lm.tokens.bucket import Bucket, BucketWork, Shard, do_bucket
from open_lm.tokens.executor import Executor, LocalExecutor
from open_lm.tokens.inputs import UNIT_BYTES, InputFile, Unit, is_long, list_inputs, plan_runs, plan_units
from open_lm.tokens.layout import TOKENIZER, claim, remove_written, shards_folder
from open_lm.tokens.options import InputOptions, LastSequence, OutputOptions, RunOptions, available_cores, validate
from open_lm.tokens.pack import cut, pad
from open_lm.tokens.progress import Progress
from open_lm.tokens.read import text_bytes
from open_lm.tokens.stats import Counts, add_up, write_stats
from open_lm.tokens.unit import UnitResult, UnitWork, do_units, spill_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """How a corpus is divided. Other sizes give another order of the same sequences; users don't choose them."""

    unit_bytes: int = UNIT_BYTES
    bucket_text_bytes: int = shuffle.BUCKET_TEXT_BYTES


@dataclass(frozen=True)
class Leftover:
    """What became of the tokens after the corpus's last whole sequence."""

    dropped: int
    padding: int


def preprocess(inputs: InputOptions, output: OutputOptions, run: RunOptions, sizes: Sizes = Sizes()) -> Counts:
    """Make shards, manifests, statistics and a copy of the tokenizer.

    Raises:
        ValueError: bad options or input, in lines that name flag, value and remedy.
        RuntimeError: a worker process died.
    """
    started = time.monotonic()
    validate(inputs, output, run)
    files = list_inputs(inputs.input_files)
    out = shards_folder(str(output.output_dir), output.seq_len)
    claim(out, output.overwrite)
    tokenizer = load_tokenizer(inputs.tokenizer, inputs.eot_token)
    executor = LocalExecutor(run.num_workers or available_cores())
    with _work_folder(run.temp_dir, out) as folder:
        units = _plan(files, executor, sizes)
        work = _unit_work(inputs, output, run, tokenizer, folder, len(units) + 1, _bucket_count(files, sizes))
        log.info("%d files, %d units, %d buckets, %s, %d workers", len(files), len(units), work.buckets, work.engine, executor.workers)
        results = _do_all_units(work, units, executor, inputs.max_bad_fraction, sizes)
        bucket_sizes, leftover = _spill_tails(work, results, output.last_sequence, tokenizer.eot_id)
        _expect_sequences(results, bucket_sizes, work.length)
        remove_written(out)
        shards = _write_shards(_bucket_work(work, output, out), bucket_sizes, executor)
    counts = Counts(
        input_files=len(files),
        input_bytes=sum(file.size for file in files),
        sequences=sum(shard.entry.num_sequences for shard in shards),
        tokens_per_sequence=work.length,
        dropped_tokens=leftover.dropped,
        padding_tokens=leftover.padding,
        shards=len(shards),
        seconds=round(time.monotonic() - started, 3),
        **add_up(results),
    )
    counts.assert_whole()
    _finish(out, shards, output, tokenizer, work, counts)
    return counts


@contextmanager
def _work_folder(temp_dir: str | None, out: Path) -> Iterator[str]:
    parent = Path(temp_dir).expanduser() if temp_dir else out.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{out.name}-work-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plan(files: Sequence[InputFile], executor: Executor, sizes: Sizes) -> list[Unit]:
    long = [file for file in files if is_long(file, sizes.unit_bytes) and file.compression]
    measured: dict[str, int] = {}
    if long:
        with Progress("measuring long files", len(long), "file") as progress:
            for index, size in executor.map(text_bytes, long):
                measured[long[index].path] = size
                progress.add(1, long[index].path)
    return plan_units(files, measured, sizes.unit_bytes)


def _bucket_count(files: Sequence[InputFile], sizes: Sizes) -> int:
    return shuffle.bucket_count(sum(file.text_bytes for file in files), sizes.bucket_text_bytes)


def _unit_work(
    inputs: InputOptions, output: OutputOptions, run: RunOptions, tokenizer: Tokenizer, folder: str, units: int, buckets: int
) -> UnitWork:
    encoder = FastEncoder(tokenizer, inputs.tokenizer_engine)
    if encoder.reason:
        log.info("tokenizing with tokenizers: %s", encoder.reason)
    file = Path(folder) / TOKENIZER
    file.write_text(tokenizer.json_text, encoding="utf-8")
    return UnitWork(
        tokenizer_file=str(file),
        tokenizer_name=tokenizer.name,
        eot_token=tokenizer.eot_token,
        engine=encoder.engine,
        text_key=inputs.text_key,
        length=output.seq_len + 1,
        wide=tokenizer.vocab_size > 1 << 16,
        units=units,
        buckets=buckets,
        shuffle=run.shuffle,
        seed=run.seed,
        folder=folder,
    )


def _bucket_work(work: UnitWork, output: OutputOptions, out: Path) -> BucketWork:
    return BucketWork(
        folder=work.folder,
        out=str(out),
        units=work.units,
        buckets=work.buckets,
        length=work.length,
        wide=work.wide,
        shuffle=work.shuffle,
        seed=work.seed,
        format=output.format,
        shard_size=output.shard_size,
        consumers=output.num_consumers,
    )


def _do_all_units(work: UnitWork, units: Sequence[Unit], executor: Executor, max_bad: float, sizes: Sizes) -> list[UnitResult]:
    """Results in the order of the units. Raises ValueError when more documents are refused than allowed."""
    results: list[UnitResult] = []
    tokens = 0
    tasks = [(work, run) for run in plan_runs(units, sizes.unit_bytes)]
    with Progress("tokenizing", len(units), "unit") as progress:
        for _, some in executor.map(do_units, tasks):
            for result in some:
                for refusal in result.refusals:
                    log.warning("refused: --input-files %s", refusal)
                if result.refused and max_bad == 0:
                    raise ValueError(f"--input-files {result.refusals[0]}; mend it, or let such documents pass with --max-bad-fraction")
                tokens += result.tokens
            results += some
            progress.add(len(some), f"{tokens / 1e6:.1f} Mtok")
    results.sort(key=lambda result: result.index)
    refused, read = sum(r.refused for r in results), sum(r.documents for r in results)
    if refused > max_bad * (refused + read):
        first = next(r.refusals[0] for r in results if r.refused)
        share = f"{refused} of {refused + read} documents were refused"
        raise ValueError(f"--max-bad-fraction {max_bad}: {share}, the first is {first}; mend them or allow more")
    return results


def _spill_tails(work: UnitWork, results: Sequence[UnitResult], last: LastSequence, eot_id: int) -> tuple[np.ndarray, Leftover]:
    """The tails of all units, in their order, as one more unit. Returns the sequences of each bucket, and what is left over."""
    rows, rest = cut(np.concatenate([np.empty(0, work.dtype), *(result.tail for result in results)]), work.length)
    leftover = Leftover(len(rest), 0)
    if len(rest) and last == "pad":
        rows = np.concatenate([rows, pad(rest, work.length, eot_id)])
        leftover = Leftover(0, work.length - len(rest))
    sizes = spill_rows(work, work.units - 1, rows)
    for result in results:
        sizes = sizes + result.bucket_sizes
    return sizes, leftover


def _expect_sequences(results: Sequence[UnitResult], bucket_sizes: np.ndarray, length: int) -> None:
    if not bucket_sizes.sum():
        tokens = sum(result.tokens for result in results)
        remedy = "give more text, --last-sequence pad, or a smaller --seq-len"
        raise ValueError(f"--input-files: hold {tokens} tokens, and a sequence needs {length}; {remedy}")


def _write_shards(work: BucketWork, bucket_sizes: np.ndarray, executor: Executor) -> list[Shard]:
    """All shards, in the order of their numbers."""
    firsts = shuffle.first_shards(bucket_sizes, work.shard_size)
    tasks = [(work, Bucket(i, int(size), int(firsts[i]))) for i, size in enumerate(bucket_sizes) if size]
    shards: list[Shard] = []
    with Progress("writing", int(firsts[-1]), "shard") as progress:
        for _, some in executor.map(do_bucket, tasks):
            shards += some
            progress.add(len(some), f"{sum(shard.entry.bytes or 0 for shard in shards) / 1e6:.0f} MB")
    shards.sort(key=lambda shard: shard.number)
    assert [shard.number for shard in shards] == list(range(firsts[-1]))
    return shards


def _finish(out: Path, shards: Sequence[Shard], output: OutputOptions, tokenizer: Tokenizer, work: UnitWork, counts: Counts) -> None:
    """Manifests, the tokenizer, and last the statistics."""
    for consumer in range(min(output.num_consumers, len(shards))):
        write_manifest(out / str(consumer) / MANIFEST, [shard.entry for shard in shards[consumer :: output.num_consumers]])
    with storage.atomic_write(out / TOKENIZER, "w") as file:
        file.write(tokenizer.json_text)
    more = {
        "seq_len": output.seq_len,
        "format": output.format,
        "seed": work.seed if work.shuffle else None,
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eot_token": tokenizer.eot_token,
            "eot_id": tokenizer.eot_id,
            "engine": work.engine,
        },
        "command": shlex.join(sys.argv),
    }
    write_stats(out, counts, more)
