"""Conversations to shards, from beginning to end: list, plan, render and pack units, write shards, account for every token."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from open_lm.executor import LocalExecutor, available_cores
from open_lm.shards import provenance
from open_lm.shards.manifest import MANIFEST
from open_lm.tokenizer import TOKENIZER, TOKENIZER_CONFIG, Tokenizer, load_tokenizer
from open_lm.tokens import shuffle, stats
from open_lm.tokens.claim import claim
from open_lm.tokens.destination import STATS, Destination, destination
from open_lm.tokens.gather import Shard, ShardWork
from open_lm.tokens.instruct.options import InstructOptions, validate
from open_lm.tokens.instruct.packing import WINDOW_TOKENS
from open_lm.tokens.instruct.records import Keys
from open_lm.tokens.instruct.stage import Packed, pack
from open_lm.tokens.instruct.template import ChatTemplate, find_template
from open_lm.tokens.instruct.unit import InstructCounts, InstructWork
from open_lm.tokens.job import Identity, WorkFolder, identity, work_folder
from open_lm.tokens.memory import default_limit, plan_memory
from open_lm.tokens.plan import plan_groups, text_bytes, unit_bytes
from open_lm.tokens.preprocess import Sizes, check_refused, make_room
from open_lm.tokens.reading.inputs import STDIN, InputFile, list_inputs
from open_lm.tokens.reading.stdin import spool_stdin
from open_lm.tokens.stages import write
from open_lm.tokens.stats import Counts
from open_lm.tokens.unit import EncoderWork, encoder_for, encoder_work
from open_lm.tokens.warm import VARIABLE

log = logging.getLogger(__name__)

_LISTED_REFUSALS = 1000
_SIZES = Sizes()
_INDIFFERENT = ("input_files", "tokenizer_engine", "output_dir", "overwrite", "resume", "tokenizer", "eot_token", "chat_template")


@dataclass(frozen=True)
class Summary:
    """What a job came to. `conversations`: the counts of stats.json that text has not."""

    counts: Counts
    conversations: dict[str, Any]

    def __str__(self) -> str:
        of, counts = self.conversations, self.counts
        rows = [
            ("input files", f"{counts.input_files:,}"),
            ("conversations read", f"{counts.documents_read:,}"),
            ("conversations refused", f"{counts.documents_refused:,}"),
            (f"conversations over {counts.tokens_per_sequence} tokens, {of['long']}", f"{of['long_conversations']:,}"),
            ("tokens of these left out", f"{counts.dropped_tokens:,}"),
            ("tokens, with ends of text", f"{counts.tokens:,}"),
            ("tokens that count", f"{of['counted_tokens']:,}"),
            ("of these targets in a row", f"{of['target_tokens']:,}"),
            (f"sequences of {counts.tokens_per_sequence}", f"{counts.sequences:,}"),
            ("share of them that is filled", f"{of['fill_ratio']:.2%}"),
            ("shards", f"{counts.shards:,}"),
            ("bytes of shards", f"{counts.shard_bytes:,}"),
            ("seconds to start", f"{counts.startup_seconds:.1f}"),
            ("seconds of work", f"{counts.seconds:.1f}"),
        ]
        return "\n".join(f"{name:<44} {value:>16}" for name, value in rows)


@dataclass(frozen=True)
class _Job:
    """A job that may begin."""

    options: InstructOptions
    files: Sequence[InputFile]
    tokenizer: Tokenizer
    work: InstructWork
    folder: WorkFolder
    places: Destination
    identity: Identity


def make_instruct(options: InstructOptions, sizes: Sizes = _SIZES) -> Summary:
    """Make shards, manifests, provenance, statistics and a copy of the tokenizer; what a stopped run did already is not done again.

    Raises:
        ValueError: bad options or input, in lines that name flag, value and remedy.
        RuntimeError: workers were killed again and again.
        OSError: a file that can't be read or written.
    """
    started = time.monotonic()
    validate(options)
    output, chosen = options.output, options.template
    root = destination(output.output_dir, output.seq_len, None, Path()).root
    folder = WorkFolder(work_folder(root, options.run.temp_dir))
    places = destination(output.output_dir, output.seq_len, None, folder.path / "upload")
    with ExitStack() as stack:
        stack.enter_context(folder.locked())
        files = _list(options.input.input_files, folder)
        tokenizer = load_tokenizer(chosen.tokenizer, chosen.eot_token)
        template = find_template(chosen.chat_template, chosen.tokenizer, tokenizer, chosen.template_date)
        wanted = identity(_deciding(options, tokenizer, template, sizes), files)
        if claim(folder, places, wanted, files, output.overwrite, output.resume) is not None:
            return _finished(places)
        workers = options.run.num_workers or available_cores()
        memory = plan_memory(default_limit(workers), workers, len(files), wide=True)
        encoder = encoder_work(tokenizer, folder.path, engine=options.template.tokenizer_engine)
        work = _work(options, files, encoder, template, folder, memory.large_bytes, sizes)
        environment = {VARIABLE: json.dumps(asdict(encoder))}
        executor = stack.enter_context(LocalExecutor(memory.workers, ["open_lm.tokens.warm"], environment))
        executor.start()
        executor.wait()
        summary = _do(_Job(options, files, tokenizer, work, folder, places, wanted), executor, started)
        folder.remove()
    return summary


def _list(patterns: Sequence[str], folder: WorkFolder) -> list[InputFile]:
    files = list_inputs(patterns, spool_stdin(folder.path) if STDIN in patterns else None)
    other = next((file for file in files if file.holds != "lines"), None)
    if other is not None:
        raise ValueError(f"--input-files {other.path}: holds no lines of JSON; give .jsonl files, .zst or .gz or neither")
    return files


def _deciding(options: InstructOptions, tokenizer: Tokenizer, template: ChatTemplate | None, sizes: Sizes) -> dict[str, Any]:
    """The options that decide the bytes of the output, by flag."""
    topics = {**asdict(options.input), **asdict(options.template), **asdict(options.output)}
    chosen = {f"--{name.replace('_', '-')}": value for name, value in topics.items() if name not in _INDIFFERENT}
    return {
        **chosen,
        "--tokenizer": tokenizer.sha256,
        "--eot-token": tokenizer.eot_token,
        "--chat-template": None if template is None else asdict(template),
        "sizes": {**asdict(sizes), "window_tokens": WINDOW_TOKENS},
    }


def _work(
    options: InstructOptions,
    files: Sequence[InputFile],
    encoder: EncoderWork,
    template: ChatTemplate | None,
    folder: WorkFolder,
    large_bytes: int,
    sizes: Sizes,
) -> InstructWork:
    text, output = sum(map(text_bytes, files)), options.output
    size = sizes.unit_bytes or unit_bytes(text)
    return InstructWork(
        encoder=encoder,
        keys=Keys(options.input.messages_key, options.input.prompt_key, options.input.response_key),
        template=template,
        separator=options.template.separator,
        loss_on=options.template.loss_on,
        length=output.seq_len + 1,
        long=output.long,
        unit_bytes=size,
        groups=len(plan_groups(files, size)),
        buckets=shuffle.bucket_count(text, sizes.bucket_text_bytes),
        shuffle=output.shuffle,
        seed=output.seed,
        strict=options.input.max_bad_fraction == 0,
        folder=str(folder.path),
        large_bytes=large_bytes,
    )


def _do(job: _Job, executor: LocalExecutor, started: float) -> Summary:
    """The two stages, and what lies beside the shards."""
    work, output, ready = job.work, job.options.output, time.monotonic()
    packed = pack(work, plan_groups(job.files, work.unit_bytes), executor, executor.workers)
    check_refused(packed.counts, job.options.input.max_bad_fraction)
    if not packed.bucket_sizes.sum():
        raise ValueError("--input-files: hold no conversation that is kept; give others, or another --long")
    make_room(job.folder, job.places)
    shard_work = ShardWork(
        folder=work.folder,
        destination=job.places,
        buckets=work.buckets,
        length=work.length,
        wide=True,
        shuffle=work.shuffle,
        seed=work.seed,
        format="npy",
        consumers=output.num_consumers,
        signed=True,
    )
    shards = write(shard_work, packed.bucket_sizes, output.shard_size, executor, text_per_token=4.0)
    counts = _count(job, packed, shards, ready - started, time.monotonic() - ready)
    counts.assert_whole()
    summary = Summary(counts, _of_conversations(packed.counts, counts, output.long))
    _finish(job, shards, summary, packed.counts)
    if packed.counts.inner_ends:
        log.warning(
            "%d conversations hold the end of text %s before their end, where --document-mask would divide them;"
            " with another --eot-token it would not",
            packed.counts.inner_ends,
            job.tokenizer.eot_token,
        )
    return summary


def _count(job: _Job, packed: Packed, shards: Sequence[Shard], startup: float, seconds: float) -> Counts:
    found = packed.counts
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
        dropped_tokens=found.left_out,
        padding_tokens=found.padding,
        shards=len(shards),
        shard_bytes=sum(shard.entry.bytes or 0 for shard in shards),
        startup_seconds=round(startup, 3),
        seconds=round(seconds, 3),
    )


def _of_conversations(found: InstructCounts, counts: Counts, long: str) -> dict[str, Any]:
    positions = counts.sequences * counts.tokens_per_sequence
    return {
        "counted_tokens": found.counted_tokens,
        "target_tokens": found.targets,
        "fill_ratio": round(1 - found.padding / positions, 6),
        "long": long,
        "long_conversations": found.long,
        "with_inner_end_of_text": found.inner_ends,
    }


def _finish(job: _Job, shards: Sequence[Shard], summary: Summary, found: InstructCounts) -> None:
    """Manifests, the list of input files, the tokenizer with its chat template, and last the statistics."""
    places, consumers, tokenizer, work = job.places, job.options.output.num_consumers, job.tokenizer, job.work
    for consumer in range(min(consumers, len(shards))):
        lines = "".join(shard.entry.to_json() + "\n" for shard in shards[consumer::consumers])
        places.put(f"{consumer}/{MANIFEST}", lines.encode())
    places.put(f"{provenance.FOLDER}/{provenance.FILES}", provenance.files_to_bytes((f.path, f.size, f.stamp) for f in job.files))
    places.put(TOKENIZER, tokenizer.json_text.encode())
    tokenizer.chat_template, tokenizer.special = (work.template.text, work.template.special) if work.template else (None, {})
    if tokenizer.config_json:
        places.put(TOKENIZER_CONFIG, tokenizer.config_json.encode())
    more = {
        "seq_len": job.options.output.seq_len,
        "format": "npy",
        "seed": work.seed if work.shuffle else None,
        "conversations": summary.conversations,
        "chat_template": None if work.template is None else asdict(work.template),
        "loss_on": work.loss_on,
        "tokenizer": {**tokenizer.identity, "engine": encoder_for(work.encoder).engine},
        "document_lengths": found.lengths.to_json(),
        "documents_of_sequences": found.documents_of_sequences.to_json(),
        "refusals": found.refusals[:_LISTED_REFUSALS],
        "command": shlex.join(sys.argv),
        "job": job.identity.to_json(),
    }
    places.put(STATS, stats.to_json(summary.counts, more))


def _finished(places: Destination) -> Summary:
    """Of the same command, which made it before."""
    data = places.read(STATS)
    assert data is not None
    counts, values = stats.from_json(data)
    return Summary(counts, values["conversations"])
