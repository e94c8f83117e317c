"""The figures of a corpus are those that counting by hand gives, of texts and of shards, for any number of workers."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import random_texts, write_jsonl

from open_lm.executor import LocalExecutor
from open_lm.shards.provenance import Provenance, to_bytes
from open_lm.tokenizer import load_tokenizer
from open_lm.tokens import stats
from open_lm.tokens.histogram import Fill, merged_bins, picture
from open_lm.tokens.lengths import Lengths
from open_lm.tokens.reading.inputs import list_inputs
from open_lm.tokens.tools.corpus_stats import Begun, TextFigures, TextVisitor, documents_per_sequence, of_shards, table, whole_documents
from open_lm.tokens.tools.survey import survey
from open_lm.tokens.unit import encoder_work

LENGTH = 33


def figures_of(paths: list[Path], tokenizer_file: Path, folder: Path, length: int = LENGTH) -> TextFigures:
    work = encoder_work(load_tokenizer(str(tokenizer_file)), str(folder))
    figures = TextFigures(length)
    for visitor in survey(functools.partial(TextVisitor, work, length), list_inputs(map(str, paths)), "text", LocalExecutor(1)):
        figures.add(visitor.figures)
    return figures


def test_the_figures_are_those_of_counting(tokenizer_file: Path, tmp_path: Path) -> None:
    texts = [*random_texts(300, 1), "", "é"]
    figures = figures_of(
        [write_jsonl(tmp_path / "a.jsonl", texts[:100]), write_jsonl(tmp_path / "b.jsonl", texts[100:])], tokenizer_file, tmp_path
    )
    lengths = [len(ids) + 1 for ids in load_tokenizer(str(tokenizer_file)).encode_batch(texts)]
    assert (figures.documents, figures.empty, figures.refused) == (302, 1, 0)
    assert (figures.characters, figures.utf8_bytes) == (sum(map(len, texts)), sum(len(t.encode()) for t in texts))
    assert figures.lengths == Lengths.of(np.array(lengths)) and figures.tokens == sum(lengths)
    own = sum(-(-n // LENGTH) for n in lengths)
    assert (figures.own_sequences, figures.whole_documents) == (own, sum(n <= LENGTH for n in lengths))
    values = figures.to_json()
    assert values["fill_ratio_padded"] == pytest.approx(sum(lengths) / own / LENGTH)
    assert values["packed_sequences"] * LENGTH + values["left_over_tokens"] == values["tokens"] == sum(lengths)
    assert values["characters_per_token"] == pytest.approx(sum(map(len, texts)) / sum(lengths))
    assert values["document_lengths"]["smallest"] == 1 and json.loads(json.dumps(values)) == values


def test_bad_lines_are_counted(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnonsense\n{"body": 1}\n')
    assert figures_of([tmp_path / "a.jsonl"], tokenizer_file, tmp_path).refused == 2


@given(lengths=st.lists(st.integers(1, 40), max_size=60), length=st.integers(1, 20), cut=st.integers(0, 60))
def test_documents_per_sequence_are_those_of_the_packed_stream(lengths: list[int], length: int, cut: int) -> None:
    stream = [number for number, size in enumerate(lengths) for _ in range(size)]
    expected = [len(set(stream[i : i + length])) for i in range(0, len(stream) - length + 1, length)]
    first, begun = documents_per_sequence(np.array(lengths[:cut], np.int64), length, Begun())
    second, left = documents_per_sequence(np.array(lengths[cut:], np.int64), length, begun)
    assert [*first.tolist(), *second.tolist()] == expected
    rest = stream[len(expected) * length :]
    assert left == (len(rest), len(set(rest)))


def make_shards(folder: Path, lengths: list[int], length: int) -> list[list[int]]:
    """A folder as make_2048.py leaves it, without its shards. Returns the documents of each sequence, by their numbers."""
    stream = [(number, token) for number, size in enumerate(lengths) for token in range(size)]
    rows = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    random.Random(0).shuffle(rows)
    pieces = [
        [(n, min(t for m, t in row if m == n), sum(m == n for m, _ in row)) for n in dict.fromkeys(n for n, _ in row)] for row in rows
    ]
    columns = np.array([piece for some in pieces for piece in some])
    zeros = np.zeros(len(columns), np.uint32)
    ends = np.cumsum([len(some) for some in pieces])
    (folder / "provenance/0").mkdir(parents=True)
    found = Provenance(ends, zeros, columns[:, 0].astype(np.uint64), columns[:, 1].astype(np.uint32), columns[:, 2].astype(np.uint32))
    (folder / "provenance/0/shard-0000000.npz").write_bytes(to_bytes(found))
    known = {
        **{"documents_read": len(lengths), "characters": 4 * sum(lengths), "utf8_bytes": 5 * sum(lengths), "tokens": sum(lengths)},
        **{"sequences": len(rows), "tokens_per_sequence": length, "dropped_tokens": sum(lengths) % length, "shards": 1},
    }
    counts = stats.Counts(**{field.name: known.get(field.name, 0) for field in dataclasses.fields(stats.Counts)})
    (folder / "stats.json").write_bytes(stats.to_json(counts, {"document_lengths": Lengths.of(np.array(lengths)).to_json()}))
    return [[n for n, _, _ in some] for some in pieces]


def test_the_figures_of_shards_are_in_their_files(tmp_path: Path) -> None:
    lengths = [random.Random(i).randrange(1, 90) for i in range(200)]
    rows = make_shards(tmp_path / "16-v1", lengths, 17)
    figures = of_shards(str(tmp_path / "16-v1"))
    assert of_shards(str(tmp_path)) == figures
    assert figures.counts.documents_read == 200 and figures.lengths == Lengths.of(np.array(lengths))
    assert figures.parts == Lengths.of(np.array([len(row) for row in rows])) and figures.parts.number == len(rows)
    assert figures.fill.ratio == 1 and figures.fill.tokens == len(rows) * 17
    ends = np.cumsum(lengths)
    inside = {(int(end - size) // 17) for end, size in zip(ends, lengths) if (end - size) // 17 == end // 17}
    assert figures.whole_sequences == len({i for i in inside if i < len(rows)})
    assert figures.to_json()["characters_per_token"] == 4 and json.loads(json.dumps(figures.to_json()))


def test_shards_without_provenance_have_figures_too(tmp_path: Path) -> None:
    make_shards(tmp_path / "16-v1", [5, 30, 7], 17)
    (tmp_path / "16-v1/provenance/0/shard-0000000.npz").unlink()
    figures = of_shards(str(tmp_path))
    assert (figures.parts, figures.whole_sequences) == (None, None)
    assert dict(figures.rows())["sequences of 17"] == "2" and picture(figures.lengths, figures.fill, "x").startswith(b"\x89PNG")


def test_whole_documents_begin_and_end_in_their_sequence() -> None:
    start = np.array([0, 0, 5, 0, 0, 9], np.uint32)
    zeros = np.zeros(6, np.uint32)
    found = Provenance(np.array([3, 4, 4, 6]), zeros, np.arange(6).astype(np.uint64), start, zeros)
    assert whole_documents(found).tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("other.json", "{}", r"--shards .*: has no stats.json; give the folder that make_2048.py finished"),
        ("stats.json", "{}", r"--shards .*: its stats.json is no stats.json of this program"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        of_shards(str(tmp_path))
    assert "\n" not in str(error.value)


def test_two_folders_of_shards_are_told_apart(tmp_path: Path) -> None:
    for name in ("16-v1", "32-v1"):
        make_shards(tmp_path / name, [5, 30, 7], 17)
    with pytest.raises(ValueError, match="holds 16-v1 and 32-v1; name one of them"):
        of_shards(str(tmp_path))


def test_the_table_is_text_or_markdown() -> None:
    rows = [("documents", "12"), ("tokens", "3,456")]
    assert [line.split() for line in table(rows, "plain").splitlines()] == [["documents", "12"], ["tokens", "3,456"]]
    assert table(rows, "markdown").splitlines()[1:] == ["| --- | ---: |", "| documents | 12 |", "| tokens | 3,456 |"]


@given(lengths=st.lists(st.integers(0, 2**40), max_size=30))
def test_the_drawn_bins_hold_every_document(lengths: list[int]) -> None:
    found = Lengths.of(np.array(lengths, np.int64))
    bins = merged_bins(found)
    assert sum(count for _, _, count in bins) == len(lengths) and len(bins) <= 61
    for length in lengths:
        assert sum(low <= length < high for low, high, _ in bins) == 1


@pytest.mark.parametrize("lengths", [[], [0, 1, 2**40]])
def test_any_corpus_can_be_drawn(lengths: list[int]) -> None:
    found = Lengths.of(np.array(lengths, np.int64))
    for fill in (None, Fill(2049, 10, 5, Lengths.of(np.array([1, 2, 9, 700])))):
        assert picture(found, fill, "a corpus").startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_counts_the_same_with_two_workers(repo: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    texts = random_texts(400, 3)
    for number in range(4):
        write_jsonl(tmp_path / f"{number}.jsonl", texts[number::4])
    line = [sys.executable, repo / "datapreprocess/corpus_stats.py", "--tokenizer", tokenizer_file, "--seq-len", "32", "--input-files", "."]
    for workers in (1, 2):
        more = ["--num-workers", str(workers), "--output-json", f"{workers}.out", "--output-png", f"{workers}.png"]
        done = subprocess.run([*line, *more], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "documents" in done.stdout and "400" in done.stdout
    one, two = (json.loads((tmp_path / f"{workers}.out").read_text()) for workers in (1, 2))
    assert one == two
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    again = subprocess.run([*line, "--output-json", "1.out", "--output-png", "."], capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2 and [text.split(":")[0] for text in again.stderr.splitlines()] == ["--output-json 1.out", "--output-png ."]
    both = subprocess.run([*line, "--shards", ".", "--seq-len", "0"], capture_output=True, text=True, cwd=tmp_path)
    assert both.returncode == 2 and "give one of them" in both.stderr and "--seq-len 0: give 1 or more" in both.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["corpus_stats", "validate_data", "train_tokenizer", "download_dataset"])
def test_help_takes_less_than_a_second_and_loads_nothing_heavy(repo: Path, tool: str) -> None:
    code = (
        "import atexit, runpy, sys; sys.argv = [sys.argv[1], '--help']; "
        "heavy = ('numpy', 'torch', 'tokenizers', 'zstandard', 'fsspec'); "
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules])); "
        "sys.path.insert(0, ''); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, repo / f"datapreprocess/{tool}.py"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr
