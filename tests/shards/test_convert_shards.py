import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_lm.shards import convert as convert_module
from open_lm.shards.convert import ConvertOptions, Summary, convert
from open_lm.shards.manifest import read_manifest, write_manifest
from open_lm.shards.manifest_command import main as manifest_command
from open_lm.shards.members import MASKED
from open_lm.shards.scan import decode, token_members
from open_lm.shards.tar import write_shard
from open_lm.shards.tar_stream import TarStream

FORMATS = ("txt", "json.gz", "npy")
RECORD = "conversion.jsonl"


def run(given: Path, out: Path, fmt: str, **options) -> Summary:
    return convert(ConvertOptions(str(given), str(out), fmt, **{"num_workers": 1, **options}))


def read(path: Path, eot_id: int | None = None) -> np.ndarray:
    with path.open("rb") as file:
        rows = [decode(member, str(path), eot_id, None) for member in token_members(TarStream(file, str(path)), None, str(path))]
    return np.concatenate(rows).astype(np.int64) if rows else np.empty((0, 0), np.int64)


def corpus(folder: Path, fmt: str = "txt", dtype: type = np.uint16, counts: tuple[int, ...] = (130, 3, 64), length: int = 5) -> Path:
    """Shards dealt to two consumers, with what make_2048 puts beside them."""
    rng = np.random.default_rng(0)
    entries: dict[int, list] = {0: [], 1: []}
    for number, count in enumerate(counts):
        rows = rng.integers(0, 50_000, (count, length)).astype(dtype)
        path = folder / str(number % 2) / f"shard-{number // 2:07d}.tar"
        entries[number % 2].append(write_shard(path, fmt, rows))
        (folder / "provenance" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (folder / "provenance" / str(number % 2) / f"{path.stem}.npz").write_bytes(b"pieces of %d" % number)
    for consumer, some in entries.items():
        write_manifest(folder / str(consumer) / "manifest.jsonl", some)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.md").write_text("not ours")
    stats = {"sequences": sum(counts), "format": fmt, "tokenizer": {"vocab_size": 50_277 if dtype == np.uint16 else 1 << 17, "eot_id": 0}}
    (folder / "stats.json").write_text(json.dumps(stats))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the record."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != RECORD}


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_to_a_format_and_back_gives_the_same_bytes(first: str, second: str, dtype: type, tmp_path: Path) -> None:
    given = corpus(tmp_path / "in", first, dtype)
    run(given, tmp_path / "there", second)
    run(tmp_path / "there", tmp_path / "back", first)
    expected = contents(given)
    expected.pop("notes.md")
    stats = json.loads(expected.pop("stats.json"))
    back = contents(tmp_path / "back")
    assert json.loads(back.pop("stats.json")) == stats
    assert back == expected
    there = contents(tmp_path / "there")
    assert json.loads(there["stats.json"]) == {**stats, "format": second}
    assert there["0/shard-0000000.tar"] == contents(corpus(tmp_path / "made", second, dtype))["0/shard-0000000.tar"]
    assert manifest_command(["--verify", "--num-workers", "1", str(tmp_path / "there")]) == 0


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.one_of(st.integers(0, 3), st.integers(60, 140)),
    length=st.integers(1, 6),
    top=st.sampled_from([1, 2**16, 2**16 + 1, 2**32]),
    formats=st.tuples(*[st.sampled_from(FORMATS)] * 3),
    seed=st.integers(0, 99),
)
def test_any_ids_of_any_shape_survive_any_two_conversions(
    count: int, length: int, top: int, formats: tuple[str, ...], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    rows = np.random.default_rng(seed).integers(0, top, (count, length)).astype(np.uint32)
    write_shard(folder / "a" / "s.tar", formats[0], rows)
    run(folder / "a", folder / "b", formats[1])
    run(folder / "b", folder / "c", formats[2])
    assert np.array_equal(read(folder / "c" / "s.tar").reshape(rows.shape), rows)
    (entry,) = read_manifest(str(folder / "c" / "manifest.jsonl"))
    assert (entry.shard, entry.num_sequences) == ("s", count)


def test_golden_shards_through_every_format_and_back(shared: Path, tmp_path: Path) -> None:
    golden = shared / "data/golden/shards_json_gz"
    for fmt in FORMATS:
        run(golden, tmp_path / fmt, fmt)
        run(tmp_path / fmt, tmp_path / f"{fmt}-back", "json.gz")
        told = read_manifest(str(golden / "manifest.jsonl"))
        for made in (tmp_path / fmt, tmp_path / f"{fmt}-back"):
            entries = read_manifest(str(made / "manifest.jsonl"))
            assert [(e.shard, e.num_sequences) for e in entries] == [(e.shard, e.num_sequences) for e in told]
            for entry in told:
                assert np.array_equal(read(made / f"{entry.shard}.tar"), read(golden / f"{entry.shard}.tar"))


def test_strings_of_openlm_become_ids(tmp_path: Path) -> None:
    tar_of(tmp_path / "in" / "s.tar", [("           0.txt", b"[5, '<|endoftext|>', 6]"), ("           1.txt", b"[7, 8, 9]")])
    with pytest.raises(ValueError, match=r"s\.tar, member            0\.txt: holds the string '<\|endoftext\|>', whose id is unknown"):
        run(tmp_path / "in", tmp_path / "no", "npy")
    run(tmp_path / "in", tmp_path / "out", "npy", eot_id=3)
    assert read(tmp_path / "out" / "s.tar").tolist() == [[5, 3, 6], [7, 8, 9]]


def test_the_tokenizer_knows_end_of_text(shared: Path, tmp_path: Path) -> None:
    tokenizer = next((shared / "data/tokenizers").glob("*.json"))
    tar_of(tmp_path / "in" / "s.tar", [("a.txt", b"[5, '<|endoftext|>']")])
    run(tmp_path / "in", tmp_path / "out", "txt", tokenizer=str(tokenizer))
    assert read(tmp_path / "out" / "s.tar").tolist() == [[5, 0]]
    with pytest.raises(ValueError, match=r"--eot-id 4: end of text of --tokenizer .* is 0; give one of them"):
        run(tmp_path / "in", tmp_path / "other", "txt", tokenizer=str(tokenizer), eot_id=4)


def test_masked_positions_go_into_lists_and_into_signed_npy(tmp_path: Path) -> None:
    tar_of(tmp_path / "in" / "s.tar", [("a.json.gz", gzip.compress(b"[1, 2]")), ("b.json.gz", gzip.compress(b'[3, "<|pad|>"]'))])
    for fmt in ("txt", "json.gz", "npy"):
        run(tmp_path / "in", tmp_path / fmt, fmt)
        assert read(tmp_path / fmt / "s.tar").tolist() == [[1, 2], [3, MASKED]]


def test_loss_masks_stay_in_npy_and_go_into_no_list(tmp_path: Path) -> None:
    rows = np.array([[5, ~6, MASKED], [~70_000, 7, 8]], np.int32)
    write_shard(tmp_path / "in" / "s.tar", "npy", rows)
    run(tmp_path / "in", tmp_path / "npy", "npy")
    assert (tmp_path / "npy/s.tar").read_bytes() == (tmp_path / "in/s.tar").read_bytes()
    for fmt in ("txt", "json.gz"):
        with pytest.raises(ValueError, match=rf"s\.tar, member .*\.npy: has a loss mask, which {fmt} can't hold; give --format npy"):
            run(tmp_path / "in", tmp_path / fmt, fmt)
        assert contents(tmp_path / fmt) == {}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.txt", b"[1, 2]"), ("b.txt", b"[1, 2, 3]")], r"member b\.txt: holds sequences of 3 tokens, the first member of 2"),
        ([("a.txt", b"[1, 2]"), ("b.txt", b"[1, ")], r"member b\.txt: is not a list of tokens"),
        ([("a.txt", b"[1, -2]")], r"member a\.txt: holds -2, which is no token id"),
        ([("a.txt", b"[1, 4294967296]")], r"member a\.txt: holds the id 4294967296, beyond 32 bits"),
        ([("a.txt", b"[1]"), ("b.json", b"[1]")], r"--data-key txt: the sample of b\.json in .* has only json"),
        ([("a.txt", b"[1]"), ("a.json", b"[1]")], r"--data-key: the first sample of .* has members json, txt"),
    ],
)
def test_damaged_shards_are_named_and_not_written(members: list, words: str, tmp_path: Path) -> None:
    tar_of(tmp_path / "in" / "s.tar", members)
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "in", tmp_path / "out", "npy")
    assert contents(tmp_path / "out") == {}


def test_a_shard_unlike_its_manifest_is_not_converted(tmp_path: Path) -> None:
    given = corpus(tmp_path / "in")
    shard = given / "1" / "shard-0000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole + bytes(1024))
    with pytest.raises(ValueError, match=rf"{shard}: has \d+ bytes, its manifest says \d+; copy it again"):
        run(given, tmp_path / "out", "npy")
    shard.unlink()
    with pytest.raises(
        ValueError, match=r"does not tell its folder: 1/shard-0000000\.tar is missing; see python -m open_lm\.shards\.manifest"
    ):
        run(given, tmp_path / "other", "npy")


def test_members_beside_the_tokens_are_counted(tmp_path: Path) -> None:
    tar_of(tmp_path / "in" / "s.tar", [("a.txt", b"[1]"), ("a.cls", b"1"), ("b.txt", b"[1]")])
    summary = run(tmp_path / "in", tmp_path / "out", "npy")
    assert summary.left_out == 1 and "left out, since they hold no tokens: 1 member" in str(summary)


def test_an_interrupted_conversion_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = corpus(tmp_path / "in")
    run(given, tmp_path / "whole", "npy")
    done = []

    def dies_at_the_third(task: convert_module.ShardTask):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return convert_shard(task)

    convert_shard = convert_module.convert_shard
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert_module, "convert_shard", dies_at_the_third)
        run(given, tmp_path / "out", "npy")
    assert not list((tmp_path / "out").rglob("manifest.jsonl")) and not (tmp_path / "out" / "stats.json").exists()
    with (tmp_path / "out" / RECORD).open("a") as file:
        file.write('{"name": "1/shard')  # a line cut by the kill
    (tmp_path / "out" / "0" / ".shard-0000000.tar.abcd_123.tmp").write_bytes(b"half")
    assert run(given, tmp_path / "out", "npy").kept == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert run(given, tmp_path / "out", "npy").kept == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_kept_shard_must_be_whole_and_its_source_the_same(tmp_path: Path) -> None:
    given = corpus(tmp_path / "in")
    run(given, tmp_path / "out", "npy")
    whole = contents(tmp_path / "out")
    shard = tmp_path / "out" / "0" / "shard-0000000.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[2000] ^= 1
    shard.write_bytes(damaged)
    assert run(given, tmp_path / "out", "npy").kept == 2
    assert contents(tmp_path / "out") == whole
    os.utime(given / "1" / "shard-0000000.tar", ns=(1, 1))
    assert run(given, tmp_path / "out", "npy").kept == 2
    assert contents(tmp_path / "out") == whole


def test_no_manifest_stands_beside_shards_that_are_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = corpus(tmp_path / "in")
    run(given, tmp_path / "out", "npy")
    os.utime(given / "1" / "shard-0000000.tar", ns=(1, 1))

    def sees_no_manifest(task: convert_module.ShardTask) -> None:
        raise OSError(f"{len(list((tmp_path / 'out').rglob('manifest.jsonl')))} manifests, {(tmp_path / 'out' / 'stats.json').exists()}")

    monkeypatch.setattr(convert_module, "convert_shard", sees_no_manifest)
    for overwrite in (False, True):
        with pytest.raises(OSError, match="0 manifests, False"):
            run(given, tmp_path / "out", "npy", overwrite=overwrite)


def test_a_shard_whose_source_is_gone_goes_too(tmp_path: Path) -> None:
    rows = np.zeros((3, 4), np.uint16)
    for name in ("a", "b"):
        write_shard(tmp_path / "in" / f"{name}.tar", "txt", rows)
    run(tmp_path / "in", tmp_path / "out", "npy")
    (tmp_path / "in" / "b.tar").unlink()
    run(tmp_path / "in", tmp_path / "out", "npy")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.tar", RECORD, "manifest.jsonl"]


def test_nothing_is_overwritten_unless_asked_and_then_only_what_a_conversion_made(tmp_path: Path) -> None:
    given, out = corpus(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "mine.tar").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=rf"--output-dir {out}: is not empty, and no conversion made what it holds"):
            run(given, out, "npy", overwrite=overwrite)
    (out / "mine.tar").unlink()
    run(given, out, "npy")
    with pytest.raises(ValueError, match=r"holds another conversion \(format was npy, is json\.gz\); give --overwrite"):
        run(given, out, "json.gz")
    (out / "mine.txt").write_text("mine")
    assert run(given, out, "json.gz", overwrite=True).kept == 0
    assert (out / "mine.txt").read_text() == "mine"
    (out / "mine.txt").unlink()
    run(given, tmp_path / "fresh", "json.gz")
    assert contents(out) == contents(tmp_path / "fresh")


def test_all_problems_of_the_options_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        convert(ConvertOptions(None, "s3://b/out", eot_id=-1, num_workers=0, data_key="bin"))
    assert [line.split(":")[0].split()[0] for line in str(error.value).splitlines()] == [
        *("--input-dir", "--output-dir", "--num-workers", "--eot-id", "--data-key")
    ]
    for source, out in (("a", "a"), ("a", "a/b"), ("a/b", "a")):
        with pytest.raises(ValueError, match="lies in --input-dir"):
            run(tmp_path / source, tmp_path / out, "npy")
    with pytest.raises(ValueError, match=r"--input-dir .*none: no shards there"):
        run(tmp_path / "none", tmp_path / "out", "npy")


def command(repo: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(repo / "datapreprocess/convert_shards.py"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_the_command_converts_in_several_processes(repo: Path, tmp_path: Path) -> None:
    given = corpus(tmp_path / "in")
    begin = time.perf_counter()
    assert "--eot-id" in command(repo, "--help").stdout
    assert time.perf_counter() - begin < 3
    done = command(repo, "--input-dir", "in", "--output-dir", "out", "--format", "json.gz", "--num-workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "3 shards (0 of them made earlier), 197 sequences"
    run(given, tmp_path / "one", "json.gz")
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    failed = command(repo, "--input-dir", "in", "--output-dir", "out", "--format", "npy", cwd=tmp_path)
    assert failed.returncode == 2 and "holds another conversion" in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.slow
def test_shards_in_s3_are_converted(s3, tmp_path: Path) -> None:
    given = corpus(tmp_path / "in")
    for path in given.rglob("*.*"):
        s3.put(f"v1/{path.relative_to(given)}", path.read_bytes())
    run(given, tmp_path / "local", "npy")
    convert(ConvertOptions(s3.url("v1"), str(tmp_path / "remote"), "npy", num_workers=1))
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


def test_joined_tars_are_converted_whole_and_cut_ones_and_links_to_nothing_refused(tmp_path: Path, shared: Path) -> None:
    case = (shared / "data/cases/two_tars_joined_12_samples.tar").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar").write_bytes(case)
    assert run(tmp_path / "in", tmp_path / "out", "npy").sequences == 12
    assert manifest_command([str(tmp_path / "in"), "--num-workers", "1"]) == 0
    assert [entry.num_sequences for entry in read_manifest(str(tmp_path / "in/manifest.jsonl"))] == [12]
    assert manifest_command([str(tmp_path / "in"), "--verify", "--num-workers", "1"]) == 0
    (tmp_path / "in/manifest.jsonl").unlink()
    for broken, words in ((case[:2048], "ends without the end mark"), (case + b"x", "has bytes behind its end, from byte 20480 on")):
        (tmp_path / "in/a.tar").write_bytes(broken)
        with pytest.raises(ValueError, match=rf"a\.tar: {words}"):
            run(tmp_path / "in", tmp_path / "no", "npy")
    (tmp_path / "in/a.tar").unlink()
    (tmp_path / "in/a.tar").symlink_to("gone")
    with pytest.raises(ValueError, match=r"^--input-dir .*/a\.tar: is a link to gone, which can't be opened"):
        run(tmp_path / "in", tmp_path / "no", "npy")
    assert manifest_command([str(tmp_path / "in")]) == 2


def test_what_no_conversion_made_is_never_removed(tmp_path: Path) -> None:
    rows = np.zeros((3, 4), np.uint16)
    write_shard(tmp_path / "in/a.tar", "txt", rows)
    out = tmp_path / "out"
    run(tmp_path / "in", out, "npy")
    for name in ("tokenizer.json", ".mine.tmp", ".mine.tar.tmp"):
        (out / name).write_text("mine")
    run(tmp_path / "in", out, "npy")
    run(tmp_path / "in", out, "json.gz", overwrite=True)
    assert {name: (out / name).read_text() for name in ("tokenizer.json", ".mine.tmp", ".mine.tar.tmp")} == dict.fromkeys(
        ("tokenizer.json", ".mine.tmp", ".mine.tar.tmp"), "mine"
    )
    (tmp_path / "in/tokenizer.json").write_text("another")
    with pytest.raises(ValueError, match="holds a tokenizer.json that no conversion made; move it away"):
        run(tmp_path / "in", out, "json.gz")
    record = (out / RECORD).read_text()
    (out / RECORD).write_text(record.replace('"name": "a"', '"name": "../in/a"'))
    with pytest.raises(ValueError, match="is outside of the folder"):
        run(tmp_path / "in", out, "npy", overwrite=True)
    assert (tmp_path / "in/a.tar").exists()


def test_a_conversion_that_fails_at_once_takes_no_folder(tmp_path: Path) -> None:
    write_shard(tmp_path / "in/a.tar", "txt", np.full((3, 4), 9, np.uint16))
    with pytest.raises(ValueError):
        run(tmp_path / "in", tmp_path / "out", "npy", data_key="json")
    run(tmp_path / "in", tmp_path / "out", "npy")
