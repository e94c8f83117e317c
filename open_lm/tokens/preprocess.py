"""Text to shards, from beginning to end: list, plan, tokenize units, share out sequences, write shards, account for every token."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from open_lm.executor import LocalExecutor, available_cores
from open_lm.params.fields import counted
from open_lm.progress import Progress
from open_lm.shards import provenance
from open_lm.shards.manifest import MANIFEST
from open_lm.tokenizer import TOKENIZER, Tokenizer, load_tokenizer
from open_lm.tokens import shuffle, stats
from open_lm.tokens.claim import claim
from open_lm.tokens.destination import PICTURE, STATS, Destination, destination
from open_lm.tokens.estimate import Estimate, check_disk, estimate
from open_lm.tokens.gather import Shard, ShardWork
from open_lm.tokens.histogram import draw
from open_lm.tokens.job import Identity, WorkFolder, identity, work_folder
from open_lm.tokens.memory import MemoryPlan, default_limit, parse_size, plan_memory
from open_lm.tokens.options import Options, validate
from open_lm.tokens.plan import plan_groups, text_bytes, unit_bytes
from open_lm.tokens.reading.inputs import STDIN, InputFile, list_inputs
from open_lm.tokens.reading.stdin import spool_stdin
from open_lm.tokens.stages import Tokenized, tokenize, write
from open_lm.tokens.stats import Counts
from open_lm.tokens.unit import EncoderWork, UnitCounts, UnitWork, encoder_for, encoder_work
from open_lm.tokens.warm import VARIABLE

log = logging.getLogger(__name__)

_LISTED_REFUSALS = 1000


@dataclass(frozen=True)
class Sizes:
    """How a corpus is divided. Other sizes give another order of the same sequences; users don't choose them."""

    unit_bytes: int | None = None
    bucket_text_bytes: int = shuffle.BUCKET_TEXT_BYTES


@dataclass(frozen=True)
class _Job:
    """A job that may begin."""

    options: Options
    files: Sequence[InputFile]
    tokenizer: Tokenizer
    memory: MemoryPlan
    work: UnitWork
    folder: WorkFolder
    places: Destination
    identity: Identity


def preprocess(options: Options, sizes: Sizes = Sizes()) -> Counts | None:
    """Make shards, manifests, provenance, statistics and a copy of the tokenizer; what a stopped run did already is not done again.

    Returns:
        The counts; None for a dry run, which prints instead.

    Raises:
        ValueError: bad options or input, in lines that name flag, value and remedy.
        RuntimeError: workers were killed again and again.
        OSError: a file that can't be read or written.
    """
    started = time.monotonic()
    validate(options)
    with ExitStack() as stack:
        folder = WorkFolder(_work_folder(options, stack))
        if not options.run.dry_run:
            stack.enter_context(folder.locked())
        files = _list(options, folder)
        tokenizer = load_tokenizer(options.tokenizer.tokenizer, options.tokenizer.eot_token)
        memory = _plan_memory(options, files, tokenizer)
        wanted = identity(_deciding(options, tokenizer, sizes), files)
        places = destination(options.output.output_dir, options.output.seq_len, options.s3_base, folder.path / "upload")
        if not options.run.dry_run:
            finished = claim(folder, places, wanted, files, options.output.overwrite, options.output.resume)
            if finished is not None:
                return finished
        chosen = options.tokenizer
        encoder = encoder_work(
            tokenizer,
            folder.path,
            engine=chosen.tokenizer_engine,
            escape_special=chosen.escape_special,
            verify=chosen.verify,
            normalize=chosen.normalize,
            bos_id=tokenizer.bos_id() if chosen.bos else None,
        )
        executor = stack.enter_context(LocalExecutor(memory.workers, ["open_lm.tokens.warm"], {VARIABLE: json.dumps(asdict(encoder))}))
        executor.start()
        work = _unit_work(options, files, encoder, tokenizer, memory, folder, sizes)
        job = _Job(options, files, tokenizer, memory, work, folder, places, wanted)
        with Progress("estimating"):
            expected = _estimate(job)
        if options.run.dry_run:
            print(_in_words(job, expected))
            return None
        executor.wait()
        counts = _do(job, expected, executor, started)
        folder.remove()
    return counts


def _do(job: _Job, expected: Estimate, executor: LocalExecutor, started: float) -> Counts:
    """The two stages, and what lies beside the shards."""
    options, work, ready = job.options, job.work, time.monotonic()
    groups = plan_groups(job.files, work.unit_bytes)
    last, eot_id = options.output.last_sequence, job.tokenizer.eot_id
    tokenized = tokenize(work, groups, executor, job.memory.workers, expected.tokens, last, eot_id)
    check_refused(tokenized.counts, options.input.max_bad_fraction)
    make_room(job.folder, job.places)
    shards = write(_shard_work(job), tokenized.bucket_sizes, options.output.shard_size, executor, expected.ratio)
    counts = _count(job, tokenized, shards, ready - started, time.monotonic() - ready)
    counts.assert_whole()
    _finish(job, shards, counts, tokenized.counts)
    return counts


def _work_folder(options: Options, stack: ExitStack) -> Path:
    if options.run.dry_run:
        return Path(stack.enter_context(tempfile.TemporaryDirectory()))
    root = destination(options.output.output_dir, options.output.seq_len, options.s3_base, Path()).root
    return work_folder(root, options.run.temp_dir)


def _list(options: Options, folder: WorkFolder) -> list[InputFile]:
    """The input files; standard input is copied into the work folder, so that it can be read more than once."""
    patterns = options.input.input_files
    if STDIN not in patterns:
        return list_inputs(patterns)
    if options.run.dry_run:
        raise ValueError("--dry-run: can't look at standard input without reading it; name files")
    return list_inputs(patterns, spool_stdin(folder.path))


def _plan_memory(options: Options, files: Sequence[InputFile], tokenizer: Tokenizer) -> MemoryPlan:
    wanted = options.run.num_workers or available_cores()
    limit = parse_size(options.run.memory_limit) if options.run.memory_limit else default_limit(wanted)
    memory = plan_memory(limit, wanted, len(files), tokenizer.vocab_size > 1 << 16)
    if memory.workers < wanted:
        log.warning("--memory-limit %.1f GB: room for %d of %d workers", limit / 1e9, memory.workers, wanted)
    return memory


def _deciding(options: Options, tokenizer: Tokenizer, sizes: Sizes) -> dict[str, Any]:
    """The options that decide the bytes of the output, by flag; the engine doesn't, its ids are the same."""
    topics = {**asdict(options.input), **asdict(options.tokenizer), **asdict(options.output)}
    indifferent = (
        "input_files",
        "tokenizer_engine",
        "verify",
        "output_dir",
        "upload_to_s3",
        "overwrite",
        "resume",
        "tokenizer",
        "eot_token",
    )
    chosen = {f"--{name.replace('_', '-')}": value for name, value in topics.items() if name not in indifferent}
    return {**chosen, "--tokenizer": tokenizer.sha256, "--eot-token": tokenizer.eot_token, "sizes": asdict(sizes)}


def _unit_work(
    options: Options,
    files: Sequence[InputFile],
    encoder: EncoderWork,
    tokenizer: Tokenizer,
    memory: MemoryPlan,
    folder: WorkFolder,
    sizes: Sizes,
) -> UnitWork:
    text = sum(map(text_bytes, files))
    size = sizes.unit_bytes or unit_bytes(text)
    return UnitWork(
        encoder=encoder,
        text_key=options.input.text_key,
        length=options.output.seq_len + 1,
        wide=tokenizer.vocab_size > 1 << 16,
        unit_bytes=size,
        groups=len(plan_groups(files, size)),
        buckets=shuffle.bucket_count(text, sizes.bucket_text_bytes),
        shuffle=options.output.shuffle,
        seed=options.output.seed,
        strict=options.input.max_bad_fraction == 0,
        folder=str(folder.path),
        large_bytes=memory.large_bytes,
    )


def _estimate(job: _Job) -> Estimate:
    """What it will come to. Raises ValueError when the disks have no room for it."""
    work, options, places = job.work, job.options, job.places
    encoder = encoder_for(work.encoder)
    if encoder.reason:
        log.info("tokenizing with tokenizers: %s", encoder.reason)
    itemsize = work.dtype().itemsize
    expected = estimate(job.files, work.encoder, work.text_key, job.memory.workers, work.length, itemsize, options.output.format)
    if not options.run.dry_run:
        done = sum(file.stat().st_size for file in job.folder.path.glob("*.spill"))
        needs = [("--temp-dir", job.folder.path, max(0, expected.temporary - done))]
        check_disk(needs if places.remote else [*needs, ("--output-dir", Path(places.root), expected.output)])
    return expected


def _in_words(job: _Job, expected: Estimate) -> str:
    """What a run would do."""
    work, output = job.work, job.options.output
    rows = [
        ("input files", f"{len(job.files):,}"),
        ("stored bytes", f"{sum(file.size for file in job.files):,}"),
        ("text bytes, about", f"{expected.text:,}"),
        ("tokens, about", f"{expected.tokens:,}"),
        (f"sequences of {work.length}, about", f"{expected.sequences:,}"),
        ("shards, about", f"{-(-expected.sequences // output.shard_size):,}"),
        (f"bytes of {output.format} shards, about", f"{expected.output:,}"),
        ("temporary bytes, about", f"{expected.temporary:,}"),
        ("workers", f"{job.memory.workers}"),
        ("units, about", f"{max(work.groups, -(-expected.text // work.unit_bytes)):,}"),
        ("engine", encoder_for(work.encoder).engine),
        ("seconds, about", f"{expected.seconds:,.0f}"),
    ]
    lines = [f"{name:<32} {value:>20}" for name, value in rows]
    return "\n".join([*lines, f"output in {job.places.root}", "nothing was written (--dry-run)"])


def check_refused(counts: UnitCounts, allowed: float) -> None:
    """Raises ValueError when a larger share of the documents than `allowed` was refused."""
    read = counts.refused + counts.documents
    if counts.refused > allowed * read:
        said = f"{counts.refused} of {counted(read, 'document')} refused, the first is {counts.refusals[0]}"
        raise ValueError(f"--max-bad-fraction {allowed}: {said}; mend them or allow more")


def make_room(folder: WorkFolder, places: Destination) -> None:
    """Once: remove what another command wrote into the output folder (--overwrite)."""
    if not folder.writing:
        places.clear()
        folder.note_writing()


def _shard_work(job: _Job) -> ShardWork:
    work = job.work
    return ShardWork(
        folder=work.folder,
        destination=job.places,
        buckets=work.buckets,
        length=work.length,
        wide=work.wide,
        shuffle=work.shuffle,
        seed=work.seed,
        format=job.options.output.format,
        consumers=job.options.output.num_consumers,
    )


def _count(job: _Job, tokenized: Tokenized, shards: Sequence[Shard], startup: float, seconds: float) -> Counts:
    found = tokenized.counts
    return Counts(
        input_files=len(job.files),
        input_bytes=sum(file.size for file in job.files),
        documents_read=found.documents,
        documents_refused=found.refused,
        characters=found.characters,
        utf8_bytes=found.utf8_bytes,
        tokens=found.tokens,
        tokens_without_eot=found.tokens - found.documents,
        checked_tokens=found.checked_tokens,
        checking_seconds=round(found.checking_seconds, 3),
        worker_seconds=round(found.seconds, 3),
        sequences=sum(shard.entry.num_sequences for shard in shards),
        tokens_per_sequence=job.work.length,
        dropped_tokens=tokenized.leftover.dropped,
        padding_tokens=tokenized.leftover.padding,
        shards=len(shards),
        shard_bytes=sum(shard.entry.bytes or 0 for shard in shards),
        startup_seconds=round(startup, 3),
        seconds=round(seconds, 3),
    )


def _finish(job: _Job, shards: Sequence[Shard], counts: Counts, found: UnitCounts) -> None:
    """Manifests, the list of input files, the tokenizer, the picture, and last the statistics."""
    places, consumers, tokenizer = job.places, job.options.output.num_consumers, job.tokenizer
    for consumer in range(min(consumers, len(shards))):
        lines = "".join(shard.entry.to_json() + "\n" for shard in shards[consumer::consumers])
        places.put(f"{consumer}/{MANIFEST}", lines.encode())
    places.put(f"{provenance.FOLDER}/{provenance.FILES}", provenance.files_to_bytes((f.path, f.size, f.stamp) for f in job.files))
    places.put(TOKENIZER, tokenizer.json_text.encode())
    places.put(PICTURE, draw(found.lengths, counts, found.documents_of_sequences))
    more = {
        "seq_len": job.options.output.seq_len,
        "format": job.options.output.format,
        "seed": job.work.seed if job.work.shuffle else None,
        "tokenizer": {**tokenizer.identity, "engine": encoder_for(job.work.encoder).engine},
        "document_lengths": found.lengths.to_json(),
        "documents_of_sequences": found.documents_of_sequences.to_json(),
        "refusals": found.refusals[:_LISTED_REFUSALS],
        "command": shlex.join(sys.argv),
        "job": job.identity.to_json(),
    }
    places.put(STATS, stats.to_json(counts, more))
