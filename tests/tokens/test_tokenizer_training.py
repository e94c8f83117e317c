"""A trained tokenizer is reversible, the same each time, and safe from being overwritten."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_lm.tokenizer import load_tokenizer
from open_lm.tokens.reading.texts import read_texts
from open_lm.tokens.tools.bpe import Sample, arbitrary_texts, check_reversible, cut_at_spaces, train_bpe, write_tokenizer

TEXTS = [f"def function_{i}(self, value):\n    return self.value + {i * 7919}  # größer als 日本\n" for i in range(200)]


@pytest.fixture(scope="module")
def trained() -> object:
    return train_bpe(TEXTS, 400)


def read() -> Iterator[str]:
    return iter(TEXTS)


@given(text=st.text())
def test_every_text_comes_back(trained, text: str) -> None:
    assert trained.decode(trained.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_the_ids_are_specials_bytes_merges(trained) -> None:
    assert trained.token_to_id("<|endoftext|>") == 0
    assert trained.token_to_id("<|padding|>") == 1
    assert trained.get_vocab_size() == 400
    ids = {i for text in arbitrary_texts() for i in trained.encode(text).ids}
    assert len([i for i in range(2, 258) if len(trained.id_to_token(i)) == 1]) == 256
    assert max(ids) < 400


def test_open_lm_finds_its_end_of_text(trained, tmp_path: Path) -> None:
    write_tokenizer(read, tmp_path / "tokenizer.json", 400)
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.eot_id, tokenizer.eot_token, tokenizer.vocab_size) == (0, "<|endoftext|>", 400)
    assert tokenizer.encode(" a") == trained.encode(" a").ids


def test_the_same_texts_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_tokenizer(read, tmp_path / name, 400)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_gigatoken_gives_the_same_ids(tmp_path: Path) -> None:
    import gigatoken

    write_tokenizer(read, tmp_path / "tokenizer.json", 400)
    fast = gigatoken.Tokenizer(str(tmp_path / "tokenizer.json"))
    texts = [*TEXTS, *arbitrary_texts()]
    expected = load_tokenizer(str(tmp_path)).encode_batch(texts)
    assert [list(ids) for ids in fast.encode_batch_list(texts, parallel=False)] == expected


def test_a_tokenizer_that_changes_text_is_found() -> None:
    from tokenizers import normalizers

    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="not reversible"):
        check_reversible(tokenizer, TEXTS)


def test_an_existing_tokenizer_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"--output .*tokenizer.json: exists already.*--overwrite") as error:
        write_tokenizer(read, path, 400)
    assert "\n" not in str(error.value) and path.read_text() == "precious"
    write_tokenizer(read, path, 400, overwrite=True)
    assert load_tokenizer(str(path)).eot_id == 0


@pytest.mark.parametrize(
    "texts, size, sample, message",
    [
        (TEXTS, 257, None, "--vocab-size 257: give 258 or more"),
        ([], 400, None, "--input-files: no text"),
        ([""], 400, None, "--input-files: no text"),
        (TEXTS, 400, 1, "--input-files: no text in them to train on, or --sample-bytes is too small"),
        (TEXTS, 400, 0, "--sample-bytes 0"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(tmp_path: Path, texts: list[str], size: int, sample: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_tokenizer(lambda: iter(texts), tmp_path / "tokenizer.json", size, sample_bytes=sample)
    assert not list(tmp_path.iterdir())


def test_a_text_with_few_pairs_gives_fewer_ids_than_asked_for(tmp_path: Path) -> None:
    trained = write_tokenizer(lambda: iter(["abab abab"]), tmp_path / "tokenizer.json", 8192)
    assert 258 < trained.vocab_size < 300


def test_a_sample_has_about_its_size_and_comes_from_everywhere() -> None:
    texts = [f"{i:04d} " * 20 for i in range(2000)]
    sample = Sample(lambda: iter(texts), 40_000)
    chosen = list(sample.texts())
    assert 32_000 < sum(map(len, chosen)) < 48_000 and sample.bytes == sum(map(len, chosen)) and sample.documents == len(chosen)
    numbers = [int(text[:4]) for text in chosen]
    assert numbers == sorted(numbers) and [sum(n // 500 == quarter for n in numbers) > 60 for quarter in range(4)] == [True] * 4
    assert chosen == list(Sample(lambda: iter(texts), 40_000).texts())


def test_without_a_size_every_text_is_trained_on_or_held_out() -> None:
    texts = [f"{i:04d} " * 20 for i in range(2000)]
    sample = Sample(lambda: iter(texts))
    chosen = list(sample.texts())
    assert sorted([*chosen, *sample.heldout]) == texts
    assert 5 < len(sample.heldout) < 50 and set(sample.trained_on) <= set(chosen)
    assert list(Sample(lambda: iter(["one"])).texts()) == ["one"]


def test_what_the_vocabulary_does_on_held_out_text_is_told(tmp_path: Path) -> None:
    texts = TEXTS * 5
    told = write_tokenizer(lambda: iter(texts), tmp_path / "tokenizer.json", 400)
    tokenizer, sample = load_tokenizer(str(tmp_path)), Sample(lambda: iter(texts))
    assert told.heldout and told.documents == len(list(sample.texts()))
    ids = [tokenizer.encode(text) for text in sample.heldout]
    assert (told.heldout.documents, told.heldout.tokens) == (len(ids), sum(map(len, ids)))
    assert told.heldout.ids_used == len({i for some in ids for i in some})
    assert told.heldout.bytes_per_token > told.heldout.characters_per_token > 2
    assert told.heldout.single_bytes == 0
    assert told.longest[0] in "".join(TEXTS) and len(told.longest[0]) >= len(told.longest[-1])


def test_parts_of_characters_are_counted() -> None:
    seen = check_reversible(train_bpe(["abc"], 300), ["aé", "日"])
    assert (seen.documents, seen.characters, seen.bytes, seen.tokens, seen.single_bytes, seen.ids_used) == (2, 3, 6, 6, 5, 6)


@given(text=st.text(alphabet=" abcd"), length=st.integers(1, 9))
def test_a_long_text_is_counted_in_pieces_of_whole_words(text: str, length: int) -> None:
    pieces = list(cut_at_spaces(text, length))
    assert "".join(pieces) == text and max(map(len, pieces)) <= length
    for piece, after in itertools.pairwise(pieces):
        assert after.startswith(" ") or " " not in piece[1:]


def test_files_of_all_kinds_are_read_in_order_and_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    (tmp_path / "a.txt").write_text("whole\nfile\n")
    assert list(read_texts([str(tmp_path / "*.jsonl*"), str(tmp_path / "a.txt")])) == ["one", "two", "three", "whole\nfile\n"]
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"words": "two"}\n')
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: has no 'text'"):
        list(read_texts([str(tmp_path / "b.jsonl")]))


@pytest.mark.slow
def test_the_command_trains_without_torch(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        "sys.path.insert(0, ''); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, repo / "datapreprocess/train_tokenizer.py", "--input-files", "in.jsonl", "--output", "t.json"]
    done = subprocess.run([*command, "--vocab-size", "300"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "300 ids, trained on 19" in done.stdout and "held-out text: " in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2 and again.stderr.startswith("--output t.json: exists already") and again.stderr.count("\n") == 1


@pytest.mark.slow
def test_all_wrong_options_are_told_at_once(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    command = [sys.executable, repo / "datapreprocess/train_tokenizer.py", "--input-files", "in.jsonl", "--output"]
    done = subprocess.run([*command, ".", "--vocab-size", "3"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "--output .: is a folder" in done.stderr and "--vocab-size 3: give 258 or more" in done.stderr
    done = subprocess.run([*command, "t.json", "--sample-bytes", "many"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "--sample-bytes 'many' is no size; write it as 2GB, 1.5GiB or a number of bytes\n"
