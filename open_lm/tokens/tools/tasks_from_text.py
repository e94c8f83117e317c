"""Two benchmark tasks made from held-out documents, in LLM Foundry's in-context-learning layout.

Documents (texts of lines) in; rows and a tasks.yaml out:
- `next_line`, multiple choice: `{"query": lines, "choices": [4 lines], "gold": i}`. Which line comes next? The wrong ones are real
  lines of similar length from three other documents. Chance: 25 %.
- `finish_line`, language modelling: `{"context": text, "continuation": word}`. The last word of a line. Chance: 0 %, every token counts.

The questions are easy ones, so that a model of a few minutes' training shows what it has learnt: those that the word statistics of
the other held-out documents answer. A model that knows nothing has no better chance with them than with any others.

LLM Foundry strips contexts and puts a space before a continuation, whatever the delimiter, so a line break between them would be
lost. Therefore a choice carries its own line break and indentation, and a continuation begins where the text has one space.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_lm import storage
from open_lm.params.fields import counted
from open_lm.tokens.tools.word_statistics import WordStatistics

Row = dict[str, Any]

CHOICES = 4
YAML_NAME = "tasks.yaml"
_CONTEXT_CHARACTERS = 256
"""Longest context before the line in question; about 75 tokens of a tokenizer for its kind of text."""
_LEAST_CONTEXT_LINES = 2
_LINE_CHARACTERS = range(15, 81)
"""Lengths of the lines, without indentation, that `next_line` asks for."""
_CLEARLY = 0.3
"""Nats a word by which the right choice leads in the word statistics."""
_PER_ENDING = 10
"""Questions with the same two last words, at most."""
_LEAST_DOCUMENTS = 3
"""Other documents in which the last word follows those before it."""
_TASK_KEYS = {
    "next_line": {"icl_task_type": "multiple_choice", "continuation_delimiter": ""},
    "finish_line": {"icl_task_type": "language_modeling", "continuation_delimiter": " "},
}


@dataclass(frozen=True)
class Place:
    """A line of a document."""

    document: int
    line: int


@dataclass(frozen=True)
class WrittenTasks:
    """What was written."""

    yaml: Path
    questions: dict[str, int]
    """By label."""


def split_lines(texts: Sequence[str]) -> list[list[str]]:
    """Lines without trailing space, tabs as spaces."""
    return [[line.rstrip().expandtabs() for line in text.split("\n")] for text in texts]


def lines_before(lines: Sequence[str], line: int) -> list[str]:
    """The lines before `line`, at most 256 characters, the first one not blank; empty where there are fewer than two."""
    start, size = line, 0
    while start > 0 and size + len(lines[start - 1]) < _CONTEXT_CHARACTERS:
        start -= 1
        size += len(lines[start]) + 1
    while start < line and not lines[start]:
        start += 1
    return list(lines[start:line]) if line - start >= _LEAST_CONTEXT_LINES else []


def _is_telling(line: str) -> bool:
    """A line worth asking for: long enough, with words in it."""
    return len(line.strip()) in _LINE_CHARACTERS and len(re.findall(r"[A-Za-z_]{3,}", line)) >= 2


def _places(documents: Sequence[Sequence[str]], wanted: Callable[[str], object], rng: random.Random) -> Iterator[Place]:
    """The wanted lines in a seeded order that goes round the documents, so that no long one has most of the questions."""
    piles = []
    for document, lines in enumerate(documents):
        pile = [Place(document, i) for i, line in enumerate(lines) if wanted(line)]
        rng.shuffle(pile)
        piles.append(pile)
    rng.shuffle(piles)
    while any(piles):
        yield from [pile.pop() for pile in piles if pile]


def next_line_rows(documents: Sequence[Sequence[str]], count: int, seed: int, statistics: WordStatistics) -> list[Row]:
    """At most `count` rows of `next_line`."""
    rng = random.Random(f"next_line {seed}")
    by_length: dict[int, list[Place]] = defaultdict(list)
    for place in _places(documents, _is_telling, rng):
        by_length[len(documents[place.document][place.line].strip())].append(place)
    rows: list[Row] = []
    for place in _places(documents, _is_telling, rng):
        if len(rows) == count:
            break
        before = lines_before(documents[place.document], place.line)
        if not before or not before[-1]:
            continue
        choices = [place, *_wrong_places(documents, place, by_length, rng)]
        lines = [documents[choice.document][choice.line] for choice in choices]
        right, *wrong = (statistics.log_probability(before[-1], line, c.document) for line, c in zip(lines, choices))
        if len(choices) == CHOICES and right >= max(wrong) + _CLEARLY:
            gold = rng.randrange(CHOICES)
            lines.insert(gold, lines.pop(0))
            rows.append({"query": "\n".join(before), "choices": [f"\n{line}" for line in lines], "gold": gold})
    return rows


def _wrong_places(
    documents: Sequence[Sequence[str]], place: Place, by_length: Mapping[int, Sequence[Place]], rng: random.Random
) -> list[Place]:
    """Three lines of other documents, one each, as long as the right one give or take a tenth; fewer where there aren't three."""
    length = len(documents[place.document][place.line].strip())
    slack = max(2, length // 10)
    near = [other for n in range(length - slack, length + slack + 1) for other in by_length.get(n, ())]
    rng.shuffle(near)
    known = {line.strip() for line in documents[place.document]}
    chosen: dict[int, Place] = {}
    for other in near:
        text = documents[other.document][other.line].strip()
        if other.document != place.document and other.document not in chosen and text not in known:
            chosen[other.document] = other
            known.add(text)
        if len(chosen) == CHOICES - 1:
            break
    return list(chosen.values())


def _split_ending(line: str) -> tuple[str, str] | None:
    """A line as what stands before its last word, and that word; None for a single word, or where more than one space parts them."""
    match = re.fullmatch(r"(.*\S) (\S+)", line)
    return (match[1], match[2]) if match else None


def finish_line_rows(documents: Sequence[Sequence[str]], count: int, seed: int, statistics: WordStatistics) -> list[Row]:
    """At most `count` rows of `finish_line`."""
    rng = random.Random(f"finish_line {seed}")
    used: Counter[tuple[str, ...]] = Counter()
    rows: list[Row] = []
    for place in _places(documents, _split_ending, rng):
        if len(rows) == count:
            break
        line = documents[place.document][place.line]
        words, before = line.split(), lines_before(documents[place.document], place.line)
        ending = tuple(words[-2:])
        if before and used[ending] < _PER_ENDING and statistics.is_usual(words, place.document, _LEAST_DOCUMENTS):
            start, last = _split_ending(line) or ("", "")
            used[ending] += 1
            rows.append({"context": "\n".join([*before, start]), "continuation": last})
    return rows


def write_tasks(
    texts: Sequence[str], output_dir: str | Path, *, questions: int = 250, seed: int = 0, overwrite: bool = False
) -> WrittenTasks:
    """Write `next_line.jsonl`, `finish_line.jsonl` and `tasks.yaml` into a local folder.

    The same texts, number and seed give the same bytes. There are fewer questions where the texts don't give more.

    Raises:
        ValueError: output that exists, a number below 1, texts that give no question of one kind.
    """
    import yaml

    if questions < 1:
        raise ValueError(f"--questions {questions}: give 1 or more")
    folder = Path(output_dir)
    existing = [name for name in (YAML_NAME, "next_line.jsonl", "finish_line.jsonl") if (folder / name).exists()]
    if existing and not overwrite:
        raise ValueError(f"--output-dir {output_dir}: {existing[0]} exists already; choose another folder or add --overwrite")
    documents = split_lines(texts)
    statistics = WordStatistics(documents)
    tables = {
        "next_line": next_line_rows(documents, questions, seed, statistics),
        "finish_line": finish_line_rows(documents, questions, seed, statistics),
    }
    for label, rows in tables.items():
        if not rows:
            raise ValueError(
                f"--input-files: no question of {label} comes from {counted(len(texts), 'document')}; give more and longer ones"
            )
    for label, rows in tables.items():
        with storage.atomic_write(folder / f"{label}.jsonl") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    entries = [{"label": label, "dataset_uri": f"{label}.jsonl", "num_fewshot": [0], **_TASK_KEYS[label]} for label in tables]
    with storage.atomic_write(folder / YAML_NAME) as file:
        file.write(yaml.safe_dump({"icl_tasks": entries}, sort_keys=False).encode())
    return WrittenTasks(folder / YAML_NAME, {label: len(rows) for label, rows in tables.items()})
