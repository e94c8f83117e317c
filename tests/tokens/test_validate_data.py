"""Every text that a tokenizer doesn't give back is found and named by file and line; what is only odd is counted."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_lm.executor import LocalExecutor
from open_lm.tokenizer import Tokenizer, load_tokenizer
from open_lm.tokens.reading.inputs import InputFile, input_file, list_inputs
from open_lm.tokens.tools.bpe import arbitrary_texts
from open_lm.tokens.tools.round_trip import CHANGED, EXACT, NORMALISED, RoundTrip, byte_table
from open_lm.tokens.tools.survey import survey
from open_lm.tokens.tools.validation import (
    CONTROL,
    DUPLICATE,
    EMPTY,
    LONG_LINE,
    NORMAL_FORM,
    NOT_REVERSIBLE,
    REFUSED,
    REPLACEMENT,
    SPECIAL,
    Checks,
    Findings,
    ValidationVisitor,
    csv_lines,
    line_numbers,
)
from open_lm.tokens.unit import encoder_for, encoder_work


def changed(tokenizer_file: Path, folder: Path, **parts: object) -> Tokenizer:
    """The tokenizer with other parts in its file."""
    values = {**json.loads(tokenizer_file.read_text(encoding="utf-8")), **parts}
    path = folder / "changed.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return load_tokenizer(str(path))


def round_trip(tokenizer: Tokenizer, folder: Path) -> RoundTrip:
    return RoundTrip(encoder_for(encoder_work(tokenizer, tempfile.mkdtemp(dir=folder))))


def kinds(trip: RoundTrip, texts: Sequence[str]) -> tuple[list[int], list[tuple[int, int, str, str]]]:
    sizes = [len(text.encode()) for text in texts]
    found, changes = trip.check(texts, "".join(texts).encode(), np.cumsum(sizes, dtype=np.int64))
    return found.tolist(), [tuple(change) for change in changes]


@pytest.fixture(scope="module")
def nfc(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RoundTrip:
    return round_trip(load_tokenizer(str(tokenizer_file)), tmp_path_factory.mktemp("nfc"))


@given(texts=st.lists(st.text(max_size=20), max_size=8))
def test_a_text_comes_back_exactly_or_in_normal_form(nfc: RoundTrip, texts: list[str]) -> None:
    normalizer = nfc._reference.backend.normalizer
    expected = [EXACT if normalizer.normalize_str(text) == text else NORMALISED for text in texts]
    assert kinds(nfc, texts) == (expected, [])


def test_all_characters_come_back(tokenizer_file: Path, tmp_path: Path) -> None:
    trip = round_trip(changed(tokenizer_file, tmp_path, normalizer=None), tmp_path)
    texts = arbitrary_texts()
    assert kinds(trip, texts) == ([EXACT] * len(texts), [])


@pytest.mark.parametrize("byte_level", [True, False])
def test_a_changed_text_is_found_with_its_place(tokenizer_file: Path, tmp_path: Path, byte_level: bool) -> None:
    """A text is lost from a tokenizer without some bytes, and a lower-case one gives back its normal form."""
    values = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    model, vocabulary = values["model"], values["model"]["vocab"]
    del vocabulary["Z"]
    decoder = values["decoder"] if byte_level else {"type": "Sequence", "decoders": [values["decoder"]]}
    tokenizer = changed(tokenizer_file, tmp_path, model=model, normalizer=None, decoder=decoder)
    assert (byte_table(tokenizer) is not None) == byte_level
    texts = ["fine", "a Zebra", "", "Z"]
    found, changes = kinds(round_trip(tokenizer, tmp_path), texts)
    assert found == [EXACT, CHANGED, EXACT, CHANGED]
    assert changes == [(1, 2, "Zebra", "ebra"), (3, 0, "Z", "")]
    lower = changed(tokenizer_file, tmp_path, normalizer={"type": "Lowercase"}, decoder=decoder)
    assert kinds(round_trip(lower, tmp_path), ["Fine", "fine"]) == ([NORMALISED, EXACT], [])


def test_what_moves_over_the_border_of_two_texts_is_found(tokenizer_file: Path, tmp_path: Path) -> None:
    """The bytes of a batch are equal as a whole, and yet both texts are wrong."""
    trip = round_trip(changed(tokenizer_file, tmp_path, normalizer=None), tmp_path)
    texts = ["ab", "cd"]
    trip._encoder = type("Shifted", (), {"encode_batch": lambda self, _: encoder_for_pieces(trip, ["abc", "d"])})()  # type: ignore[assignment]
    assert kinds(trip, texts)[0] == [CHANGED, CHANGED]


def encoder_for_pieces(trip: RoundTrip, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    some = trip._reference.encode_batch(texts)
    return np.array([i for ids in some for i in ids], np.uint32), np.cumsum([0, *map(len, some)])


def test_the_table_of_bytes_is_what_tokenizers_decodes(shared: Path) -> None:
    tokenizer = load_tokenizer(str(shared / "data/tokenizers/20B_tokenizer.json"))
    table = byte_table(tokenizer)
    assert table is not None and len(table) == tokenizer.vocab_size
    for text in ("  \n\n def f(x):\n        return 'naïve 漢字'", "a<|endoftext|> b" + " " * 30):
        assert b"".join(table[i] for i in tokenizer.encode(text)) == text.encode()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for texts alone."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


TEXTS = [
    *("fine", "", "cafe\u0301", "fine", "ring\x07", "C1 \x85", "was \ufffd", "the <|endoftext|> token", "a\nlong " + "x" * 40, ""),
    *("tab\there\r\nand\fthere", "fine", "short lines\n" * 9),
]


def validate(paths: Sequence[Path], tokenizer: Tokenizer, folder: Path, **more: object) -> tuple[Findings, list[list[str]]]:
    work = encoder_work(tokenizer, tempfile.mkdtemp(dir=folder))
    checks = Checks(**{"encoder": work, "long_line": 30, "duplicates": True, "list_odd": True, "most_listed": 100, **more})  # type: ignore[arg-type]
    files = list_inputs(map(str, paths))
    findings = Findings()
    for visitor in survey(functools.partial(ValidationVisitor, checks), files, "text", LocalExecutor(1)):
        findings.add(visitor.findings, checks.most_listed)
    findings.finish(checks)
    return findings, list(csv.reader(io.StringIO("".join(csv_lines(findings.listed, files)))))[1:]


def test_what_is_odd_is_counted_and_named(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    findings, rows = validate([tmp_path / "a.jsonl"], load_tokenizer(str(tokenizer_file)), tmp_path)
    expected = {EMPTY: 2, NORMAL_FORM: 1, DUPLICATE: 2, CONTROL: 2, REPLACEMENT: 1, SPECIAL: 1, LONG_LINE: 1}
    assert dict(findings.counts) == expected and findings.bad == 0 and findings.documents == len(TEXTS)
    assert [(int(line), reason.split(":")[0]) for _, line, reason, _ in rows] == [
        *((2, EMPTY), (3, NORMAL_FORM), (4, DUPLICATE), (5, CONTROL), (6, CONTROL), (7, REPLACEMENT), (8, SPECIAL), (9, LONG_LINE)),
        *((10, EMPTY), (12, DUPLICATE)),
    ]
    by_line = {int(line): (reason, excerpt) for _, line, reason, excerpt in rows}
    assert by_line[5] == (r"control characters: '\x07' at character 4", r"ring\x07")
    assert by_line[8] == ("special token's string: '<|endoftext|>' at character 4", "the <|endoftext|> token")
    assert by_line[9] == ("long line: 45 characters", "long " + "x" * 40)


def test_bad_ones_are_listed_even_when_odd_ones_are_not(tokenizer_file: Path, data: Path, tmp_path: Path) -> None:
    values = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    del values["model"]["vocab"]["Z"]
    tokenizer = changed(tokenizer_file, tmp_path, model=values["model"])
    first = ['{"text": "ok"}', "nonsense", '{"text": "A Zoo\\u0007"}', '{"words": 1}', "", '{"text": ""}']
    with gzip.open(data / "a.jsonl.gz", "wt") as file:
        file.write("\n".join(first))
    (data / "b.txt").write_text("two\nlines")
    (data / "c.txt").write_bytes(b"one\n\xff")
    findings, rows = validate([data], tokenizer, tmp_path, list_odd=False)
    assert findings.bad == 4 and findings.counts[REFUSED] == 3 and findings.counts[NOT_REVERSIBLE] == findings.counts[CONTROL] == 1
    assert [(Path(file).name, line, reason.split(":")[0]) for file, line, reason, _ in rows] == [
        *(("a.jsonl.gz", "2", REFUSED), ("a.jsonl.gz", "3", NOT_REVERSIBLE), ("a.jsonl.gz", "4", REFUSED), ("c.txt", "1", REFUSED))
    ]
    assert rows[1][2:] == ["comes back changed: at character 2 'Zoo\\x07' comes back as 'oo\\x07'", "A Zoo\\x07"]
    assert "is not JSON" in rows[0][2] and "has no 'text'" in rows[2][2] and "is not UTF-8" in rows[3][2]


def test_a_long_list_is_cut_and_the_counts_are_not(tokenizer_file: Path, data: Path, tmp_path: Path) -> None:
    for name in "ab":
        (data / f"{name}.jsonl").write_text("nonsense\n" * 50)
    findings, rows = validate([data], load_tokenizer(str(tokenizer_file)), tmp_path, most_listed=60)
    assert findings.bad == 100 and [int(row[1]) for row in rows] == [*range(1, 51), *range(1, 11)]


def test_duplicates_are_counted_without_their_places_too(tokenizer_file: Path, data: Path, tmp_path: Path) -> None:
    for name in "ab":
        (data / f"{name}.jsonl").write_text(f'{{"text": "same"}}\n{{"text": "{name}"}}\n{{"text": ""}}\n')
    tokenizer = load_tokenizer(str(tokenizer_file))
    assert validate([data], tokenizer, tmp_path, list_odd=False)[0].counts[DUPLICATE] == 1
    _, rows = validate([data], tokenizer, tmp_path)
    assert [(Path(file).name, line) for file, line, reason, _ in rows if reason == DUPLICATE] == [("b.jsonl", "1")]
    assert DUPLICATE not in validate([data], tokenizer, tmp_path, duplicates=False)[0].counts


@given(lines=st.lists(st.text("ab", max_size=4), min_size=1, max_size=30), chosen=st.sets(st.integers(0, 29), max_size=6))
def test_line_numbers_are_those_of_the_places(tmp_path_factory: pytest.TempPathFactory, lines: list[str], chosen: set[int]) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_text("\n".join(lines))
    starts = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    wanted = sorted(i for i in chosen if i < len(lines))
    places = [starts[i] for i in wanted]
    assert line_numbers(input_file(str(path)), [p for p in places for _ in range(2)]) == [i + 1 for i in wanted for _ in range(2)]


def test_line_numbers_go_on_over_the_reads_of_a_long_file(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"0123456\n" * 400_000)
    numbers = [1, 2, 131_072, 131_073, 262_145, 400_000]
    assert line_numbers(input_file(str(tmp_path / "x.jsonl")), [8 * (n - 1) for n in numbers]) == numbers


def test_rows_of_a_table_have_their_own_numbers() -> None:
    assert line_numbers(InputFile("x.parquet", 1, "table", None), [0, 7]) == [1, 8]


@pytest.mark.slow
def test_the_command_tells_good_from_bad(repo: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100)))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnonsense\n')
    line = [sys.executable, repo / "datapreprocess/validate_data.py", "--tokenizer", tokenizer_file, "--num-workers", "2"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*line, *options], capture_output=True, text=True, cwd=tmp_path)

    done = run("--input-files", "good.jsonl")
    assert done.returncode == 0 and done.stdout.endswith("every text comes back\n"), done.stderr
    done = run("--input-files", "good.jsonl", "bad.jsonl", "--output-csv", "bad.csv")
    assert done.returncode == 1 and done.stdout.endswith("bad.csv: 1 listed\n1 bad\n"), done.stderr
    assert (tmp_path / "bad.csv").read_text().splitlines()[1].startswith('bad.jsonl,2,"no document: is not JSON')
    done = run("--input-files", "bad.jsonl", "--output-csv", "bad.csv")
    assert done.returncode == 2 and done.stderr == "--output-csv bad.csv: exists already; choose another name or add --overwrite\n"
    done = run("--most-listed", "0", "--long-line", "0")
    assert done.returncode == 2 and [text.split()[0].rstrip(":") for text in done.stderr.splitlines()] == [
        *("--input-files", "--most-listed", "--long-line")
    ]
    done = run("--input-files", "missing.jsonl")
    assert done.returncode == 2 and done.stderr == "--input-files missing.jsonl: no file matches; check the path\n"
