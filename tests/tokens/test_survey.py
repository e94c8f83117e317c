"""A survey shows every document to one visitor, once, however files are divided among workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from open_lm.tokens.reading.inputs import list_inputs
from open_lm.tokens.reading.reader import Batch
from open_lm.tokens.tools.survey import survey


class InLine:
    """An executor that claims to have workers, and does their tasks backwards itself."""

    def __init__(self, workers: int):
        self.workers = workers

    def map(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        yield from ((index, function(tasks[index])) for index in reversed(range(len(tasks))))


class Seen:
    """Remembers what it is shown."""

    def __init__(self) -> None:
        self.texts: list[tuple[int, str]] = []

    def visit(self, number: int, batch: Batch) -> None:
        self.texts += [(number, text) for text in batch.texts]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_document_is_seen_once(tmp_path: Path, workers: int) -> None:
    """Files longer than a unit (1 MiB here) are divided: plain, compressed, and with one that ends at a unit's border."""
    lines = [json.dumps({"text": f"{i} " + "word " * (i % 500)}) + "\n" for i in range(2600)]
    text = "".join(lines).encode()
    border = (json.dumps({"text": "x" * ((1 << 19) - 13)}) + "\n").encode() * 4
    assert len(text) > 3 << 20 and len(border) == 2 << 20
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(text))
    (tmp_path / "c.jsonl").write_bytes(border)
    for number in range(5):
        (tmp_path / f"d{number}.txt").write_text(f"file {number}")
    visitors = list(survey(Seen, list_inputs([str(tmp_path)]), "text", InLine(workers)))  # type: ignore[arg-type]
    seen = sorted(text for visitor in visitors for text in visitor.texts)
    documents = [json.loads(line)["text"] for line in lines]
    expected = [(0, d) for d in documents] + [(1, d) for d in documents] + [(2, "x" * ((1 << 19) - 13))] * 4
    assert seen == sorted(expected + [(3 + n, f"file {n}") for n in range(5)])
    assert len(visitors) >= workers
