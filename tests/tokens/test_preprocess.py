"""From text to shards: every token is there once, in an order that neither workers nor timing touch."""

from __future__ import annotations

import ast
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from running import run
from small_corpus import all_files, random_texts, stored_sequences, write_jsonl

from open_lm.executor import LocalExecutor
from open_lm.params.fields import UserError
from open_lm.shards import provenance
from open_lm.shards.manifest import read_manifest
from open_lm.shards.members import decode_member
from open_lm.tokenizer import load_tokenizer
from open_lm.tokens.preprocess import Sizes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Paths of a small corpus of small, long, long compressed and empty files, and its texts in order."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = random_texts(400, 1)
    write_jsonl(folder / "a.jsonl", texts[:7])
    write_jsonl(folder / "b.jsonl", texts[7:12])
    write_jsonl(folder / "c.jsonl", texts[12:200])
    (folder / "d.jsonl").write_bytes(b"")
    long = write_jsonl(folder / "e.tmp", texts[200:399]).read_bytes()
    (folder / "e.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(long))
    (folder / "f.txt").write_text(texts[399], encoding="utf-8")
    return [f"{folder}/[abcd].jsonl", f"{folder}/e.jsonl.zst", f"{folder}/f.txt"], texts


def expected_stream(texts: list[str], tokenizer: Path) -> list[int]:
    reference = load_tokenizer(str(tokenizer))
    return [i for ids in reference.encode_batch(texts) for i in [*ids, reference.eot_id]]


def test_unshuffled_shards_are_the_documents_in_order_with_one_end_of_text_after_each(tmp_path: Path, tokenizer_file: Path) -> None:
    texts = random_texts(60, 2)
    counts = run([str(write_jsonl(tmp_path / "a.jsonl", texts))], tokenizer_file, tmp_path / "out", shuffle=False, sizes=Sizes())
    stored = [i for sequence in stored_sequences(tmp_path / "out/32-v1") for i in sequence]
    stream = expected_stream(texts, tokenizer_file)
    assert stored == stream[: len(stored)]
    assert counts.dropped_tokens == len(stream) - len(stored) < 33
    assert counts.tokens == len(stream) and counts.tokens_without_eot == len(stream) - 60


def test_no_token_is_lost_or_doubled_over_units_buckets_and_tails(
    tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path
) -> None:
    # the sequence buffer of OpenLM's make_2048 drops sequences when full, and every reader's tail (defect 1)
    paths, texts = corpus
    counts = run(paths, tokenizer_file, tmp_path, last_sequence="pad", num_consumers=2)
    stored = stored_sequences(tmp_path / "32-v1")
    assert all(len(sequence) == 33 for sequence in stored)
    ids = Counter(i for sequence in stored for i in sequence)
    expected = Counter(expected_stream(texts, tokenizer_file))
    eot = load_tokenizer(str(tokenizer_file)).eot_id
    assert ids - Counter({eot: counts.padding_tokens}) == expected
    assert (counts.documents_read, counts.dropped_tokens) == (400, 0)
    assert counts.characters == sum(map(len, texts))
    assert counts.utf8_bytes == sum(len(t.encode()) for t in texts)


def test_documents_are_whole_in_the_sequences_of_their_unit(tmp_path: Path, tokenizer_file: Path) -> None:
    texts = random_texts(50, 3)
    run([str(write_jsonl(tmp_path / "a.jsonl", texts))], tokenizer_file, tmp_path / "o", sizes=Sizes(), last_sequence="pad")
    shuffled = stored_sequences(tmp_path / "o/32-v1")
    stream = expected_stream(texts, tokenizer_file)
    in_order = [stream[i : i + 33] for i in range(0, len(stream) - 32, 33)]
    assert shuffled != in_order
    assert Counter(map(tuple, in_order)) <= Counter(map(tuple, shuffled))


@pytest.mark.slow
def test_one_two_and_seven_workers_write_the_same_bytes(tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path) -> None:
    made = []
    for workers in (1, 2, 7):
        run(corpus[0], tokenizer_file, tmp_path / str(workers), num_workers=workers, num_consumers=2)
        made.append(all_files(tmp_path / str(workers) / "32-v1"))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) > 8 and {name.split("/")[0] for name in made[0]} == {"0", "1", "provenance"}


def test_the_order_in_which_units_finish_changes_nothing(
    tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus[0], tokenizer_file, tmp_path / "forward")
    forward = LocalExecutor.map

    def backward(self: LocalExecutor, function: Any, tasks: Any) -> Any:
        return forward(self, function, list(tasks)[::-1])

    monkeypatch.setattr(LocalExecutor, "map", backward)
    run(corpus[0], tokenizer_file, tmp_path / "backward")
    assert all_files(tmp_path / "forward/32-v1") == all_files(tmp_path / "backward/32-v1")


@pytest.mark.parametrize("words", [1, 3, 400])
def test_temporary_files_take_at_most_twice_the_tokens(
    tmp_path: Path, tokenizer_file: Path, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_lm.tokens import preprocess as module

    path = write_jsonl(tmp_path / "a.jsonl", [" ".join(["lazy jumps quick"] * words)] * (200_000 // words))
    seen = []

    def look(folder: Any, places: Any) -> None:
        seen.append(sum(p.stat().st_size for p in folder.path.glob("*.spill")))

    monkeypatch.setattr(module, "make_room", look)
    counts = run([str(path)], tokenizer_file, tmp_path / "out", sizes=Sizes(), seq_len=2048, format="npy", shard_size=8192)
    assert counts.sequences > 100
    assert 2 * counts.tokens < seen[0] <= 2 * (2 * counts.tokens)


def test_the_seed_decides_the_order_and_nothing_else(tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path) -> None:
    stored = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(corpus[0], tokenizer_file, tmp_path / name, seed=seed)
        stored[name] = stored_sequences(tmp_path / name / "32-v1")
    assert stored["a"] == stored["b"] != stored["c"]
    assert sorted(stored["a"]) == sorted(stored["c"])


def test_shards_are_dealt_to_consumers_in_turn_and_manifests_are_true(
    tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path
) -> None:
    counts = run(corpus[0], tokenizer_file, tmp_path, num_consumers=3)
    folder = tmp_path / "32-v1"
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1", "2", "lengths.png", "provenance", "stats.json", "tokenizer.json"]
    entries = 0
    for consumer in range(3):
        manifest = read_manifest(str(folder / str(consumer) / "manifest.jsonl"))
        assert [e.shard for e in manifest] == [f"shard-{i:07d}" for i in range(len(manifest))]
        assert sorted(p.stem for p in (folder / str(consumer)).glob("*.tar")) == [e.shard for e in manifest]
        for entry in manifest:
            path = folder / str(consumer) / f"{entry.shard}.tar"
            with tarfile.open(path) as tar:
                assert len(tar.getmembers()) == entry.num_sequences <= 16
            assert entry.bytes == path.stat().st_size and entry.tokens_per_sequence == 33
        entries += sum(e.num_sequences for e in manifest)
    assert entries == counts.sequences


def test_a_member_of_the_default_format_is_a_python_list_of_2049_ints(tmp_path: Path, tokenizer_file: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", random_texts(300, 4))
    run([str(path)], tokenizer_file, tmp_path / "out", seq_len=2048, shard_size=8192)
    with tarfile.open(tmp_path / "out/2048-v1/0/shard-0000000.tar") as tar:
        members = tar.getmembers()
        assert members[0].name == "000000000000.txt"
        tokens = ast.literal_eval(tar.extractfile(members[0]).read().decode())
    assert len(tokens) == 2049 and all(type(t) is int for t in tokens)


def test_all_formats_hold_the_same_sequences(tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path) -> None:
    decoded = {}
    for fmt in ("txt", "json.gz", "npy"):
        run(corpus[0], tokenizer_file, tmp_path / fmt, format=fmt, shard_size=100)
        rows = []
        for shard in sorted((tmp_path / fmt / "32-v1/0").glob("*.tar")):
            with tarfile.open(shard) as tar:
                rows += [decode_member(fmt, tar.extractfile(m).read(), None) for m in tar]
        decoded[fmt] = np.concatenate(rows).tolist()
    assert decoded["txt"] == decoded["json.gz"] == decoded["npy"]


def test_both_engines_write_the_same_bytes(tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path) -> None:
    for engine in ("hf", "gigatoken"):
        run(corpus[0], tokenizer_file, tmp_path / engine, tokenizer_engine=engine)
    assert all_files(tmp_path / "hf/32-v1") == all_files(tmp_path / "gigatoken/32-v1")


def test_statistics_say_what_training_and_people_need(tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path) -> None:
    counts = run(corpus[0], tokenizer_file, tmp_path)
    stats = json.loads((tmp_path / "32-v1/stats.json").read_text())
    assert stats["bytes_per_token"] == pytest.approx(counts.utf8_bytes / counts.tokens)
    assert stats["sequences"] * 33 + stats["dropped_tokens"] == stats["tokens"] + stats["padding_tokens"]
    assert {"documents_read", "documents_refused", "characters", "seconds", "command", "versions", "seq_len"} <= stats.keys()
    copied = load_tokenizer(str(tmp_path / "32-v1"))
    assert stats["tokenizer"]["sha256"] == copied.sha256 and stats["tokenizer"]["eot_id"] == copied.eot_id


def test_nothing_is_left_beside_the_output(tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path) -> None:
    run(corpus[0], tokenizer_file, tmp_path / "out", temp_dir=str(tmp_path / "temp"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["32-v1"]
    assert list((tmp_path / "temp").iterdir()) == []


def test_a_shard_is_whole_when_it_has_its_name(
    tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenLM uploads a shard before it is closed and deletes the original (defect 2): here a name means a whole file
    import os

    seen = []
    replace = os.replace

    def watch(source: str, target: Path) -> None:
        if str(target).endswith(".tar"):
            with tarfile.open(source) as tar:
                seen.append(len(tar.getmembers()))
        replace(source, target)

    monkeypatch.setattr("os.replace", watch)
    counts = run(corpus[0], tokenizer_file, tmp_path)
    assert sum(seen) == counts.sequences and len(seen) == counts.shards


def test_a_bad_line_stops_the_run_and_is_named(tmp_path: Path, tokenizer_file: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", random_texts(50, 5))
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"--input-files .*a\.jsonl, line 51: is not JSON.*--max-bad-fraction") as error:
        run([str(path)], tokenizer_file, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out/32-v1").exists()


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: is not JSON"):
        run([str(tmp_path / "a.jsonl")], tokenizer_file, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_lines_are_counted_up_to_the_allowed_share(tmp_path: Path, tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", random_texts(98, 5))
    path.write_text(path.read_text(encoding="utf-8") + '{broken\n{"text": 5}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"--max-bad-fraction 0\.01: 2 of 100 documents refused, the first is .*line 99"):
        run([str(path)], tokenizer_file, tmp_path / "a", max_bad_fraction=0.01)
    counts = run([str(path)], tokenizer_file, tmp_path / "b", max_bad_fraction=0.02)
    assert (counts.documents_read, counts.documents_refused) == (98, 2)
    assert "line 100" in caplog.text


def test_a_wrong_id_stops_the_run_and_names_the_document(tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_lm.fast_tokenizer.engine import Gigatoken

    encode = Gigatoken.encode_all

    def spoiled(self: Gigatoken, texts: Any, dtype: Any) -> list[np.ndarray]:
        found = encode(self, texts, dtype)
        return [np.where(ids > 5, ids + 1, ids).astype(dtype) for ids in found] if b"lazy fox" in b"".join(texts) else found

    monkeypatch.setattr(Gigatoken, "encode_all", spoiled)
    path = write_jsonl(tmp_path / "a.jsonl", ["the fox", "the dog", "a lazy fox"])
    with pytest.raises(ValueError, match=r"--tokenizer-engine gigatoken: .*a\.jsonl, line [123]: .*use --tokenizer-engine hf"):
        run([str(path)], tokenizer_file, tmp_path / "out", last_sequence="pad")
    found = json.loads((tmp_path / "out/.32-v1-work/tokenizer-difference.json").read_text())
    assert found["text"] in ("the fox", "the dog", "a lazy fox") and found["ids"] != found["expected"]


def test_text_shorter_than_a_sequence_is_an_error_or_padded(tmp_path: Path, tokenizer_file: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["the fox"])
    with pytest.raises(ValueError, match=r"--input-files: hold \d+ tokens, and a sequence needs 33; .*--last-sequence pad"):
        run([str(path)], tokenizer_file, tmp_path / "a")
    counts = run([str(path)], tokenizer_file, tmp_path / "a", last_sequence="pad")  # nothing is in the way of the corrected command
    (sequence,) = stored_sequences(tmp_path / "a/32-v1")
    assert sequence[-counts.padding_tokens :] == [load_tokenizer(str(tokenizer_file)).eot_id] * counts.padding_tokens


def test_provenance_gives_back_every_documents_ids(tmp_path: Path, corpus: tuple[list[str], list[str]], tokenizer_file: Path) -> None:
    paths, texts = corpus
    counts = run(paths, tokenizer_file, tmp_path, format="npy", num_consumers=2, last_sequence="pad")
    documents: dict[tuple[int, int], dict[int, list[int]]] = {}
    padding = 0
    for shard in (tmp_path / "32-v1").glob("?/*.tar"):
        with tarfile.open(shard) as tar:
            rows = np.concatenate([decode_member("npy", tar.extractfile(member).read(), None) for member in tar])
        source = provenance.from_bytes((tmp_path / f"32-v1/provenance/{shard.parent.name}/{shard.stem}.npz").read_bytes())
        assert len(source.ends) == len(rows)
        for index, row in enumerate(rows):
            done = 0
            for file, at, start, length in source.of_sequence(index):
                documents.setdefault((file, at), {})[start] = row[done : done + length].tolist()
                done += length
            padding += len(row) - done
    files = provenance.files_from_bytes((tmp_path / "32-v1/provenance/files.jsonl").read_bytes())
    reference = load_tokenizer(str(tokenizer_file))
    expected = {}
    for number, path in enumerate(files):
        data = Path(path).read_bytes()
        data = zstandard.decompress(data) if path.endswith("zst") else data
        for at, text in [(0, data.decode())] if path.endswith("txt") else texts_of_lines(data):
            expected[number, at] = [*reference.encode(text), reference.eot_id]
    assert len(expected) == len(texts)
    assert {key: [i for _, ids in sorted(parts.items()) for i in ids] for key, parts in documents.items()} == expected
    assert padding == counts.padding_tokens


def texts_of_lines(data: bytes) -> list[tuple[int, str]]:
    """(byte at which the line starts, text) of each line."""
    found, at = [], 0
    for line in data.splitlines(keepends=True):
        found.append((at, json.loads(line)["text"]))
        at += len(line)
    return found


def test_wrong_options_are_reported_together(tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        monkeypatch.delenv("S3_BASE", raising=False)
        run([], tokenizer_file, tmp_path, upload_to_s3=True, seq_len=0, num_workers=0, max_bad_fraction=2.0, memory_limit="much")
    flags = [problem.split(":")[0].split(" ")[0] for problem in error.value.problems]
    assert flags == ["--input-files", "--max-bad-fraction", "--upload-to-s3", "--seq-len", "--num-workers", "--memory-limit"]


@pytest.mark.parametrize("group_rows", [7, 10_000])
def test_a_table_gives_what_its_texts_give(tmp_path: Path, tokenizer_file: Path, group_rows: int) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = random_texts(200, 6)
    table = pyarrow.table({"n": list(range(200)), "text": texts})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=group_rows)
    write_jsonl(tmp_path / "a.jsonl", texts)
    found = []
    for name in ("a.parquet", "a.jsonl"):
        sizes = Sizes(unit_bytes=2_000 if name == "a.parquet" else 1 << 20)
        run([str(tmp_path / name)], tokenizer_file, tmp_path / f"out-{name}", sizes=sizes, shuffle=False)
        found.append(Counter(i for sequence in stored_sequences(tmp_path / f"out-{name}/32-v1") for i in sequence))
    assert sum((found[0] - found[1]).values()) <= 33 and sum((found[1] - found[0]).values()) <= 33
    source = provenance.from_bytes((tmp_path / "out-a.parquet/32-v1/provenance/0/shard-0000000.npz").read_bytes())
    assert source.at.max() < 200
