import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from open_lm.data import counts, dataset
from open_lm.data.dataset import build_train_data, build_validation_data, check_ids, problems
from open_lm.data.places import split_parts
from open_lm.params.data import DataParams, ValidationParams
from open_lm.shards.manifest_command import main as make_manifest
from open_lm.tokenizer import check_match

Write = Callable[..., Path]


def build(*train_data: object, seq_len: int = 4, vocab_size: int = 1000, **options):
    params = DataParams(train_data=tuple(map(str, train_data)), **options)
    return build_train_data(params, seq_len=seq_len, vocab_size=vocab_size, global_batch_size=4)


def refuses(*train_data: object, **options) -> str:
    with pytest.raises(ValueError) as caught:
        build(*train_data, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_patterns_keep_their_order_and_parts_are_joined(write_shards: Write) -> None:
    folder = write_shards([1, 2, 3])
    data = build(f"{folder}/shard-{{0002,0000}}.tar::{folder}/*1.tar", f"{folder}/*.tar")
    assert data.sources[0].files.sequences.tolist() == [3, 1, 2] and data.sources[0].parts.tolist() == [0, 0, 1]
    assert data.sources[1].files.sequences.tolist() == [1, 2, 3]


@pytest.mark.parametrize("key", ["txt", "json", "json.gz", "npy"])
def test_the_key_and_the_counts_are_found_in_the_shards(key: str, write_shards: Write) -> None:
    source = build(f"{write_shards([4, 7], key=key)}/*.tar").sources[0]
    assert (source.files.key, source.files.tokens, source.files.sequences.tolist()) == (key, 5, [4, 7])


def test_counts_come_from_a_manifest_beside_the_shards_without_opening_the_rest(write_shards: Write) -> None:
    folder = write_shards([3, 2], manifest=True)
    (folder / "shard-0001.tar").write_bytes(b"not read yet")
    assert build(f"{folder}/*.tar").sources[0].files.sequences.tolist() == [3, 2]


def test_openlm_defect_4_the_last_manifest_line_counts_without_its_newline(shared: Path) -> None:
    manifest = shared / "data/golden/shards_json_gz/manifest.jsonl"
    data = build_train_data(DataParams(dataset_manifest=(str(manifest),)), seq_len=96, vocab_size=384, global_batch_size=4)
    assert data.sources[0].files.sequences.tolist() == [40, 40, 33, 40, 7] and data.one_pass() == 160


def test_openlm_defect_7_a_manifest_without_a_folder_lies_in_the_working_folder(
    write_shards: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_shards([3, 2], manifest=True))
    for place in ("manifest.jsonl", "."):
        data = build_train_data(DataParams(dataset_manifest=(place,)), seq_len=4, vocab_size=100, global_batch_size=1)
        assert data.one_pass() == 5


def test_counts_may_come_from_sizes_json(write_shards: Write) -> None:
    folder = write_shards([3, 2])
    (folder / "sizes.json").write_text('{"shard-0000.tar": 3, "shard-0001": 2}')
    assert build(f"{folder}/*.tar").one_pass() == 5


def test_a_scan_is_remembered_until_the_shard_changes(write_shards: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards([3, 2])
    build(f"{folder}/*.tar")
    scanned: list[str] = []
    read_index = counts.read_index
    monkeypatch.setattr(counts, "read_index", lambda path, key: scanned.append(path.name) or read_index(path, key))
    assert build(f"{folder}/*.tar").one_pass() == 5 and scanned == []
    write_shards([3, 4])
    os.utime(folder / "shard-0001.tar", ns=(1, 1))
    os.utime(folder / "shard-0000.tar", ns=(1, 1))
    assert build(f"{folder}/*.tar").one_pass() == 7 and scanned == ["shard-0000.tar", "shard-0001.tar"]


def test_a_damaged_or_unwritable_memory_of_counts_is_no_obstacle(
    write_shards: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards([3])
    build(f"{folder}/*.tar")
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text('{"shard-0000.tar": "x"}')
    assert build(f"{folder}/*.tar").one_pass() == 3
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build(f"{folder}/*.tar").one_pass() == 3


def test_a_pattern_without_files_is_refused(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards([1])
    assert f"--train-data {tmp_path}/no*.tar: no file matches" in refuses(f"{tmp_path}/no*.tar")
    assert "no file matches ''" in refuses(f"{folder}/*.tar::")
    assert f"no file {folder}/shard-0001.tar" in refuses(f"{folder}/shard-{{0000..0001}}.tar")
    assert f"is a folder; give {folder}/*.tar" in refuses(folder)


def test_a_shard_that_is_no_tar_is_named(write_shards: Write) -> None:
    folder = write_shards([1, 1])
    (folder / "shard-0001.tar").write_bytes(b"x" * 2000)
    assert "shard-0001.tar: is not a tar" in refuses(f"{folder}/*.tar")
    (folder / "shard-0000.tar").write_bytes(b"")
    assert "shard-0000.tar: is not a tar" in refuses(f"{folder}/*.tar")


def test_a_truncated_shard_is_named(write_shards: Write) -> None:
    shard = write_shards([1, 300]) / "shard-0001.tar"
    shard.write_bytes(shard.read_bytes()[: 512 * 201 + 3])
    assert "shard-0001.tar: ends inside its member" in refuses(shard.parent / "*.tar")


def test_sequences_shorter_than_a_row_are_refused(write_shards: Write) -> None:
    message = refuses(f"{write_shards([1])}/*.tar", seq_len=5)
    assert "have 5 tokens, a row of the model needs seq_len + 1 = 6; use a model with seq_len 4" in message


def test_shards_without_a_sequence_are_refused(write_shards: Write) -> None:
    assert "holds no sequence" in refuses(f"{write_shards([0, 0])}/*.tar")
    assert build(f"{write_shards([0, 3])}/*.tar").one_pass() == 3


def test_a_key_that_samples_lack_is_refused_with_what_they_have(write_shards: Write, write_tar: Write, tmp_path: Path) -> None:
    assert "--data-key npy: the sample of 000000000000.txt in" in refuses(f"{write_shards([1])}/*.tar", data_key="npy")
    both = write_tar(tmp_path / "both.tar", [("a.txt", b"[1]"), ("a.json", b"[1]")])
    assert "has members json, txt; name the extension" in refuses(both)
    other = write_tar(tmp_path / "other.tar", [("a.jpg", b"")])
    assert "no member with one of the extensions" in refuses(other)
    lacking = write_tar(tmp_path / "lack.tar", [("a.txt", b"[1, 2, 3, 4, 5]"), ("b.info", b"")])
    assert "sample b of" in refuses(lacking)


def test_sources_of_two_tokenizers_are_told_apart(write_shards: Write) -> None:
    one, two = write_shards([1], folder="one/0"), write_shards([1], folder="two")
    (one.parent / "tokenizer.json").write_text(_words("w1"))
    data = build(f"{one}/*.tar", f"{two}/*.tar")
    assert data.tokenizer is not None and data.description["tokenizer_sha256"] == data.tokenizer.sha256
    assert check_match(data.holders, allow=False) == []
    (two / "tokenizer.json").write_text(_words("w2"))
    for sources in ((f"{one}/*.tar", f"{two}/*.tar"), (f"{one}/*.tar::{two}/*.tar",), (f"{one.parents[1]}/{{two,one/0}}/*.tar",)):
        with pytest.raises(ValueError, match=r"--train-data .*: the tokenizer .* is another one than .*tokenizer.json \(sha256"):
            check_match(build(*sources).holders, allow=False)
    assert check_match(build(f"{two}/*.tar", tokenizer=str(one.parent)).holders, allow=True) != []  # the named one is not that beside


def _words(last: str) -> str:
    model = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, last: 1}, "unk_token": last}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model})


def test_the_tokenizer_beside_the_shards_gives_the_end_of_text(write_tar: Write, tmp_path: Path, shared: Path) -> None:
    shard = write_tar(tmp_path / "s/a.tar", [("a.txt", b"[1, '<|endoftext|>', 3]")])
    assert build(shard, seq_len=2).sources[0].files.eot_id == 0  # OpenLM's own shards have no tokenizer beside them
    text = (shared / "data/tokenizers/20B_tokenizer.json").read_text()
    (tmp_path / "s/tokenizer.json").write_text(text)
    (tmp_path / "s/stats.json").write_text('{"tokenizer": {"eot_token": "<|padding|>"}}')
    assert build(shard, seq_len=2).sources[0].files.eot_id == 1


def test_colons_of_an_address_part_nothing() -> None:
    name = "http://[2001:db8::1]:80/a/{0..1}.tar::https://[::1]/b.tar::c/[0-9]::d.tar"
    assert split_parts(name) == ["http://[2001:db8::1]:80/a/{0..1}.tar", "https://[::1]/b.tar", "c/[0-9]", "d.tar"]
    assert problems(DataParams(train_data=("http://[::1]/a.tar",), train_data_upsampling_factors=("2",))) == []


def test_all_problems_of_weights_and_factors_are_told_together() -> None:
    params = DataParams(train_data=("a", "b::c"), train_data_mix_weights=(1.0,), train_data_upsampling_factors=("1", "0"))
    found = " ".join(problems(params))
    for words in ("1 weight for 2 sources", "2 factors for 3", "0.0: must be positive"):
        assert words in found
    assert problems(DataParams(dataset_type="synthetic")) == []


def test_the_problems_of_all_sources_are_told_together(write_shards: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        build(f"{tmp_path}/x*.tar", f"{write_shards([1])}/*.tar", f"{tmp_path}/y*.tar")
    assert len(str(caught.value).splitlines()) == 2


def test_upsampling_factors_are_written_as_openlm_does_or_apart(write_shards: Write) -> None:
    a, b = write_shards([1, 1], folder="a"), write_shards([1], folder="b")
    for factors in (("1::2.5",), ("1", "2.5")):
        data = build(f"{a}/*.tar::{b}/*.tar", dataset_resampled=True, train_data_upsampling_factors=factors)
        assert data.plan is not None and data.plan.sources[0].factors.tolist() == [1, 1, 2.5]
    assert "give one number for each" in refuses(f"{a}/*.tar", dataset_resampled=True, train_data_upsampling_factors=("x",))


def test_more_than_one_pass_needs_a_flag(write_shards: Write) -> None:
    data = build(f"{write_shards([5, 6])}/*.tar")
    data.check_length(11, multiple_data_passes=False)
    data.check_length(12, multiple_data_passes=True)
    with pytest.raises(ValueError, match=r"with its 11 rows needs 2 passes; give --multiple-data-passes, or read at most 11 rows"):
        data.check_length(12, multiple_data_passes=False)


def test_tokens_that_fill_no_row_are_counted(write_shards: Write) -> None:
    data = build(f"{write_shards([5, 6], length=12)}/*.tar", seq_len=4)
    assert data.one_pass() == 22 and data.dropped_tokens() == (11 * 3,)
    assert "33 tokens of a pass fill no row" in data.log_lines()[1]


def test_moved_data_keep_their_description_and_changed_data_do_not(write_shards: Write) -> None:
    a, b, c = write_shards([5, 6], folder="a"), write_shards([5, 6], folder="b"), write_shards([6, 5], folder="c")
    one, moved, changed = (build(f"{folder}/*.tar").description for folder in (a, b, c))
    assert one == moved and one != changed


def test_validation_sets_name_their_own_problems(write_shards: Write, tmp_path: Path) -> None:
    folder = write_shards([1])
    with pytest.raises(ValueError, match=r"--val-data .*no file matches"):
        build_validation_data(ValidationParams(val_data=(f"{tmp_path}/no*",)), seq_len=4, vocab_size=9)
    with pytest.raises(ValueError, match="--val-data-key: 2 keys for 1 set"):
        build_validation_data(ValidationParams(val_data=(f"{folder}/*",), val_data_key=("txt", "npy")), seq_len=4, vocab_size=9)
    with pytest.raises(ValueError, match="--val-num-samples 3: is in tokens"):
        build_validation_data(ValidationParams(val_data=(f"{folder}/*",), val_num_samples=3), seq_len=4, vocab_size=9)


def test_shards_of_a_folder_that_are_named_one_by_one_are_one_source(write_shards: Write) -> None:
    one, two = write_shards([2, 3, 4], folder="one"), write_shards([5, 6], folder="two")
    names = [*sorted(one.glob("*.tar")), *sorted(two.glob("*.tar"))]
    data = build(*names)
    assert data.description == build(f"{one}/*.tar", f"{two}/*.tar").description
    assert data.sources[0].name == f"{one}/shard-0000.tar to shard-0002.tar (3 shards)"
    assert any(f"{data.sources[0].name}: 3 shards, 9 rows" in line for line in data.log_lines())
    assert len(build(*names, train_data_mix_weights=(1.0,) * 5).sources) == 5
    assert len(build(names[0], f"{one}/shard-000[12].tar").sources) == 2
    assert "4 weights for 5 sources; give one each; a glob in quotes" in refuses(*names, train_data_mix_weights=(1.0,) * 4)
    factors = build(*names[:3], dataset_resampled=True, train_data_upsampling_factors=("1", "2", "3"))
    assert factors.plan is not None and factors.plan.sources[0].factors.tolist() == [1, 2, 3]
    factors = build(names[0], names[3], names[1], dataset_resampled=True, train_data_upsampling_factors=("1", "2", "3"))
    assert factors.plan is not None and [source.factors.tolist() for source in factors.plan.sources] == [[1], [2], [3]]


def test_a_run_that_was_begun_with_a_source_for_each_shard_keeps_them(write_shards: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(map(str, sorted(write_shards([2, 3, 4]).glob("*.tar"))))
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "join_shards", lambda names: names)  # as version 0.3 did
        saved = build(*names).description
    params, sizes = DataParams(train_data=names), {"seq_len": 4, "vocab_size": 1000, "global_batch_size": 4}
    assert build_train_data(params, saved=saved, **sizes).description == saved != build(*names).description
    assert build_train_data(params, saved=build(*names).description, **sizes).description == build(*names).description


def test_a_manifest_is_training_and_validation_data_under_any_name(write_shards: Write, s3, web) -> None:
    folder = write_shards([3, 2], manifest=True)
    expected = build(f"{folder}/*.tar").description
    (folder / "manifest.jsonl").rename(folder / "my.list")
    for file in folder.iterdir():
        s3.put(f"d/{file.name}", file.read_bytes())
        (web.folder / file.name).write_bytes(file.read_bytes())
    for place in (f"{folder}/my.list", f"{folder}/*.list", s3.url("d/my.list"), web.url("my.list")):
        assert build(place).description == expected
        (sets,) = build_validation_data(ValidationParams(val_data=(place,)), seq_len=4, vocab_size=9)
        assert sets.rows.count == 5
    assert build(f"{folder}/my.list::{folder}/shard-0001.tar").sources[0].files.sequences.tolist() == [3, 2, 2]
    (folder / "shard-0001.tar").unlink()
    assert f"--train-data {folder}/my.list: names {folder}/shard-0001.tar, which is not there" in refuses(folder / "my.list")
    (folder / "text.jsonl").write_text('{"text": "no manifest"}')
    assert "text.jsonl: is not a tar file but JSON; give shards made by datapreprocess/make_2048.py" in refuses(folder / "text.jsonl")


def test_a_shard_that_is_named_twice_is_said_and_refused_for_validation(write_shards: Write) -> None:
    folder = write_shards([3, 2])
    for pattern in (f"{folder}/shard-{{0000,0000}}.tar", f"{folder}/*0.tar::{folder}/*.tar"):
        data = build(pattern)
        assert any(f"a shard is named more than once ({folder}/shard-0000.tar) and read as often" in line for line in data.log_lines())
        with pytest.raises(ValueError, match=rf"--val-data .*: names {folder}/shard-0000\.tar twice; name each shard once"):
            build_validation_data(ValidationParams(val_data=(pattern,)), seq_len=4, vocab_size=9)
    assert not any("more than once" in line for line in build(f"{folder}/*.tar").log_lines())


@pytest.mark.parametrize("key", ["txt", "npy"])
def test_joined_and_gzipped_shards_give_all_their_rows_and_a_cut_one_none(key: str, write_shards: Write) -> None:
    folder = write_shards([5, 4, 3], key=key)
    whole = build(f"{folder}/*.tar")
    first, second, third = (folder / f"shard-000{i}.tar" for i in range(3))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    second.unlink()
    third.write_bytes(gzip.compress(third.read_bytes()))
    for manifest in (False, True):
        if manifest:
            assert make_manifest([str(folder), "--num-workers", "1"]) == 0
        data = build(f"{folder}/*.tar", verify_shards=manifest)
        assert data.sources[0].files.sequences.tolist() == [9, 3] and data.one_pass() == whole.one_pass() == 12
        read = data.rows.reader(data.streams).read(np.arange(12))
        assert sorted(read[:, 0].tolist()) == list(range(12))
    (folder / "manifest.jsonl").unlink()
    first.write_bytes(first.read_bytes()[: 1024 * 2 if key == "txt" else 1024])
    assert f"{first}: ends without the end mark" in refuses(f"{folder}/*.tar")
    assert make_manifest([str(folder), "--num-workers", "1"]) == 2


def test_a_link_that_leads_nowhere_is_named(write_shards: Write) -> None:
    folder = write_shards([3])
    (folder / "shard-0001.tar").symlink_to("gone")
    for pattern in ("*.tar", "shard-{0000..0001}.tar", "shard-0001.tar"):
        assert f"{folder}/shard-0001.tar is a link that leads nowhere; mend or remove it" in refuses(f"{folder}/{pattern}")


def test_ids_beyond_the_vocabulary_in_the_first_rows_are_told_before_anything_starts(write_shards: Write) -> None:
    folder = write_shards([20], first=5)  # row i is of the id 5 + i
    data = build(f"{folder}/*.tar", vocab_size=5)
    sets = build_validation_data(ValidationParams(val_data=(f"{folder}/*",)), seq_len=4, vocab_size=12)
    with pytest.raises(ValueError, match=r"--train-data .*shard-0000.tar, member 0{12}.txt: token id 5 is outside the vocabulary of 5"):
        check_ids("--train-data", data.sources, (), 5)
    with pytest.raises(ValueError, match=r"--val-data .*shard-0000.tar, member 0{11}7.txt: token id 12 is outside the vocabulary of 12"):
        check_ids("--train-data", data.sources, sets, 12)
    check_ids("--train-data", data.sources, (), 12)  # training itself tells what its batches hold
