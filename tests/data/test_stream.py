import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from open_lm.data.dataset import build_train_data
from open_lm.data.places import open_place
from open_lm.data.stream import ShardFile, ShardReader
from open_lm.params.data import DataParams
from open_lm.shards.index import read_index
from open_lm.shards.members import MASKED
from open_lm.shards.tar_stream import TarStream

Write = Callable[..., Path]


def one_row(shard: ShardFile, row: int, seq_len: int = 2, vocab_size: int = 100) -> list[int]:
    out = np.empty(seq_len + 1, dtype=np.int32)
    reader = ShardReader(seq_len, vocab_size, shards_at_once=2)
    reader.read_row(shard, row, out)
    reader.close()
    return out.tolist()


def test_openlm_defect_11_samples_go_on_over_the_end_of_a_shard(write_tar: Write, tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{i}.tar", [("same.txt", b"%d" % i)]) for i in range(3)]
    assert [read_index(path, "txt").sequences for path in paths] == [1, 1, 1]


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    for content, words in (
        (b"no tar at all" * 100, "a text that begins with 'no tar at allno"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; fetch the file itself"),
        (b"<html>" * 200, "an HTML or XML page"),
    ):
        path.write_bytes(content)
        for read in (lambda: read_index(path, "txt"), lambda: list(TarStream(path.open("rb"), str(path)))):
            with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: is not a tar file but {words}"):
                read()


def test_a_file_whose_name_reads_like_a_command_is_a_file(write_tar: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(Path("pipe:touch ran.tar"), [("a.txt", b"[1]")])
    with open_place(Path("pipe:touch ran.tar")) as file:
        assert [member.name for member in TarStream(file, "here")] == ["a.txt"]
    assert not Path("ran.tar").exists()


@pytest.mark.parametrize("key", ["txt", "json", "json.gz", "npy"])
def test_a_row_is_found_by_its_place(key: str, write_shards: Write) -> None:
    shard = write_shards([7], key=key, length=3) / "shard-0000.tar"
    assert [one_row(ShardFile(shard, key, 7, None, 3, None), i) for i in (6, 0, 3)] == [[6] * 3, [0] * 3, [3] * 3]


@pytest.mark.parametrize("key", ["txt", "npy"])
def test_a_long_sample_gives_all_its_rows_which_share_their_ends(key: str, write_tar: Write, tmp_path: Path) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.arange(20, dtype=np.uint16).reshape(2, 10))
    content = {
        "npy": [("a.npy", buffer.getvalue())],
        "txt": [("a.txt", str([*range(10)]).encode()), ("b.txt", str([*range(10, 20)]).encode())],
    }
    shard = ShardFile(write_tar(tmp_path / "s.tar", content[key]), key, 2, None, 10, None)
    assert [one_row(shard, i) for i in range(8)] == [[b + i, b + i + 1, b + i + 2] for b in (0, 10) for i in (0, 2, 4, 6)]


def test_openlm_defect_10_the_string_end_of_text_is_its_id_and_pad_is_masked(write_tar: Write, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"[1, '<|endoftext|>', '<|pad|>']")])
    assert one_row(ShardFile(path, "txt", 1, None, 3, 42), 0) == [1, 42, MASKED]


@pytest.mark.parametrize(
    "text", [b"[1, 'x', 2]", b"[1, 2.0, 3]", b"[1, null, 3]", b"[1, true, 3]", b"[1, [2], 3]", b"{}", b"[1, 2,, 3]", b"[1 2 3]"]
)
def test_openlm_defect_10_what_is_no_id_is_an_error_naming_shard_and_member(text: bytes, write_tar: Write, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("good.txt", b"[1, 2, 3]"), ("bad.txt", text)])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, member bad.txt: "):
        one_row(ShardFile(path, "txt", 2, None, 3, 0), 1)


@pytest.mark.parametrize(("text", "token"), [(b"[1, 99, 100]", "100"), (b"[1, -2, 3]", "-2"), (b"[1, 2, 4294967297]", "4294967297")])
def test_openlm_defect_10_ids_outside_the_vocabulary_are_an_error_naming_shard_and_member(
    text: bytes, token: str, write_tar: Write, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.txt", text)])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, member a.txt: token id {token} is outside the vocabulary of 100"):
        one_row(ShardFile(path, "txt", 1, None, 3, None), 0)


def test_openlm_defect_10_ids_outside_the_vocabulary_are_found_in_npy(write_shards: Write) -> None:
    shard = write_shards([4], key="npy", first=98) / "shard-0000.tar"
    with pytest.raises(ValueError, match=r"shard-0000\.tar, member 000000000000\.npy: token id 100 "):
        one_row(ShardFile(shard, "npy", 4, None, 5, None), 2, seq_len=4)


def test_another_length_is_an_error_naming_shard_and_member(write_tar: Write, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"[1, 2, 3]"), ("b.txt", b"[1, 2, 3, 4]")])
    with pytest.raises(ValueError, match=r"s\.tar, member b\.txt: holds a sequence of 4 tokens, the first of its source has 3"):
        one_row(ShardFile(path, "txt", 2, None, 3, None), 1)


def test_a_shard_of_another_count_or_size_than_its_manifest_says_is_an_error(write_shards: Write) -> None:
    shard = write_shards([4], length=3) / "shard-0000.tar"
    with pytest.raises(ValueError, match="holds 4 sequences, its manifest says 5"):
        one_row(ShardFile(shard, "txt", 5, None, 3, None), 0)
    with pytest.raises(ValueError, match="its manifest says 17; copy it again"):
        one_row(ShardFile(shard, "txt", 4, 17, 3, None), 0)


def test_many_shards_in_turns_leave_few_files_open(write_shards: Write) -> None:
    folder = write_shards([2] * 100, length=3)
    reader, out = ShardReader(2, 1000, shards_at_once=10), np.empty(3, dtype=np.int32)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        for i in range(100):
            reader.read_row(ShardFile(folder / f"shard-{i:04d}.tar", "txt", 2, None, 3, None), 1, out)
            assert out.tolist() == [2 * i + 1] * 3
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 64
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_uint16_id_beyond_the_vocabulary_is_named_although_whole_batches_are_looked_at(write_shards: Callable[..., Path]) -> None:
    folder = write_shards([7, 6], key="npy", length=4)
    params = DataParams(train_data=(f"{folder}/*.tar",), data_tolerate_error_p=0.5, ignore_parse_errors=True)
    data = build_train_data(params, seq_len=3, vocab_size=12, global_batch_size=13)
    with pytest.raises(ValueError, match=r"shard-0001\.tar, member 000000000001\.npy: token id 12 is outside the vocabulary of 12"):
        data.rows.reader(13).read(np.arange(13))
