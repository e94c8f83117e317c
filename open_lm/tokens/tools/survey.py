"""Reading a corpus once through in several processes, for tools that look at texts and write no tokens.

A `Visitor` is made anew for every task, sees its batches of documents, and is sent back; what the visitors found must add up in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Protocol, TypeVar

from open_lm.executor import LocalExecutor, available_cores
from open_lm.progress import Progress
from open_lm.tokens.plan import Stretch, block_part, plan_groups, stretches, text_bytes, unit_bytes
from open_lm.tokens.reading.inputs import InputFile, Part
from open_lm.tokens.reading.reader import Batch, Reader
from open_lm.tokens.unit import EncoderWork
from open_lm.tokens.warm import VARIABLE


class Visitor(Protocol):
    """Looks at the batches of a task. Picklable after that."""

    def visit(self, number: int, batch: Batch) -> None:
        """`number`: of the batch's file in the list of input files."""
        ...


V = TypeVar("V", bound=Visitor)


def survey(make: Callable[[], V], files: Sequence[InputFile], text_key: str, executor: LocalExecutor) -> Iterator[V]:
    """The visitors of all tasks as they come back. Every document is in one batch of one of them.

    Args:
        make: makes a visitor; picklable, such as a class or a functools.partial of one.

    Raises:
        ValueError: damaged input, with the file.
        RuntimeError: worker processes die again and again.
    """
    text = sum(map(text_bytes, files))
    size = unit_bytes(text)
    groups = plan_groups(files, size)
    long_files = sum(group.long for group in groups)
    tasks = [(make, stretch, size, text_key) for group in groups for stretch in stretches(group, executor.workers, long_files, size)]
    done = 0
    with Progress("reading", max(1, text // 10**6), "MB", look=lambda: done // 10**6):
        for index, visitor in executor.map(_do, tasks):
            yield visitor
            stretch = tasks[index][1]
            done += sum(map(text_bytes, stretch.group.files)) // stretch.step


def workers(number: int | None, encoder: EncoderWork) -> LocalExecutor:
    """Processes, of all cores by default, that share the memory of one tokenizer."""
    return LocalExecutor(number or available_cores(), ["open_lm.tokens.warm"], {VARIABLE: json.dumps(asdict(encoder))})


def _do(task: tuple[Callable[[], V], Stretch, int, str]) -> V:
    make, stretch, size, text_key = task
    visitor = make()
    with Reader(text_key) as reader:
        for number, part in _parts(stretch, size, reader):
            for batch in reader.batches(part):
                visitor.visit(number, batch)
    return visitor


def _parts(stretch: Stretch, size: int, reader: Reader) -> Iterator[tuple[int, Part]]:
    """Numbers of files in the corpus, and what of them is read."""
    group = stretch.group
    if not group.long:
        yield from ((number, Part(file)) for number, file in enumerate(group.files, group.first_file))
        return
    block = stretch.first
    while True:
        part = block_part(group.files[0], block, size)
        if block and not reader.holds(part):
            return
        yield group.first_file, part
        if reader.ended(part):
            return
        block += stretch.step
