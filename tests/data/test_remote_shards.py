"""Shards on S3, on web servers and from commands give the batches that local ones give, whatever the network does."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from open_lm.data import stream
from open_lm.data.access import access_of
from open_lm.data.cache import ShardCache
from open_lm.data.dataset import TrainData, build_train_data, build_validation_data
from open_lm.data.loader import MASKED, Loader, LoaderShape, validation_shape
from open_lm.data.places import Remote
from open_lm.params.data import DataParams, ValidationParams
from open_lm.shards.manifest_command import main as make_manifest

Write = Callable[..., Path]
many_processes = pytest.mark.slow


def build(*train_data: object, batch: int = 8, **options) -> TrainData:
    params = DataParams(train_data=tuple(map(str, train_data)), **options)
    return build_train_data(params, seq_len=4, vocab_size=10_000, global_batch_size=batch)


def refuses(*train_data: object, **options) -> str:
    with pytest.raises(ValueError) as caught:
        build(*train_data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(data: TrainData, stop: int = 48, workers: int = 0, tolerate: float = 0.0, start: int = 0) -> torch.Tensor:
    """[stop - start, seq_len + 1]: the rows of a run of one process."""
    with Loader(data.rows, LoaderShape(0, 1, 8, data.streams, start, stop), workers, tolerate) as loader:
        return torch.cat([batch.tokens for batch in loader])


def put(bucket, folder: Path, prefix: str = "d") -> str:
    for path in sorted(folder.iterdir()):
        bucket.put(f"{prefix}/{path.name}", path.read_bytes())
    return bucket.url(prefix)


def with_manifest(folder: Path) -> Path:
    assert make_manifest([str(folder), "--num-workers", "1"]) == 0
    return folder


@pytest.fixture
def remote(s3, write_shards: Write) -> tuple[str, Path]:
    """Four shards of 12 rows on S3 with a manifest, and the same in a local folder."""
    folder = with_manifest(write_shards([12] * 4))
    return put(s3, folder), folder


@pytest.mark.parametrize("key", ["txt", "json.gz", "npy"])
def test_s3_gives_the_batches_of_local_files(key: str, s3, write_shards: Write) -> None:
    folder = with_manifest(write_shards([12, 0, 9, 20], key=key))
    url = put(s3, folder)
    for pattern in ("shard-{0000..0003}.tar", "*.tar", "shard-{0000,0001}.tar::{base}/shard-{0002,0003}.tar"):
        there, here = (f"{base}/{pattern.replace('{base}', str(base))}" for base in (url, folder))
        one, other = build(there, data_streams=16), build(here, data_streams=16)
        assert one.description == other.description
        assert torch.equal(rows(one, 80), rows(other, 80))


def test_local_and_remote_parts_and_sources_mix(remote, write_shards: Write) -> None:
    url, folder = remote
    other = write_shards([7, 8], folder="other", first=500)
    mixed = build(f"{url}/shard-{{0000..0001}}.tar::{folder}/shard-{{0002,0003}}.tar", f"{other}/*.tar", multiple_data_passes=True)
    local = build(f"{folder}/*.tar", f"{other}/*.tar", multiple_data_passes=True)
    assert torch.equal(rows(mixed, 160, start=32), rows(local, 160, start=32))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_gives_them_too(ranges: bool, web, write_shards: Write) -> None:
    folder = with_manifest(write_shards([12] * 4))
    shutil.copytree(folder, web.folder / "d")
    web.ranges = ranges
    local = rows(build(f"{folder}/*.tar"))
    assert torch.equal(rows(build(web.url("d/shard-{0000..0003}.tar"))), local)
    by_manifest = DataParams(dataset_manifest=(web.url("d/manifest.jsonl"),))
    assert torch.equal(rows(build_train_data(by_manifest, seq_len=4, vocab_size=10_000, global_batch_size=8)), local)


def test_the_tokenizer_and_the_statistics_lie_beside_remote_shards_too(s3, write_shards: Write, shared: Path) -> None:
    put(s3, with_manifest(write_shards([3])), "d/0")
    s3.put("d/tokenizer.json", (shared / "data/tokenizers/20B_tokenizer.json").read_bytes())
    s3.put("d/stats.json", b'{"bytes_per_token": 4.5, "tokenizer": {"eot_token": "<|padding|>"}}')
    data = build(s3.url("d/0/*.tar"))
    assert data.tokenizer is not None and data.tokenizer.eot_id == 1
    (one,) = build_validation_data(ValidationParams(val_data=(s3.url("d/0/*.tar"),)), seq_len=4, vocab_size=100)
    assert one.bytes_per_token == 4.5
    (part,) = build_validation_data(ValidationParams(val_data=(s3.url("d/0/*.tar"),), val_num_samples=8), seq_len=4, vocab_size=100)
    assert part.rows.count == 2 and part.bytes_per_token is None
    s3.put("d/stats.json", b'{"bytes_per_token": 4.5, "sequences": 4, "tokenizer": {"eot_token": "<|padding|>"}}')
    (other,) = build_validation_data(ValidationParams(val_data=(s3.url("d/0/*.tar"),)), seq_len=4, vocab_size=100)
    assert other.bytes_per_token is None


def test_validation_reads_remote_shards_in_file_order(remote) -> None:
    (one,) = build_validation_data(ValidationParams(val_data=(f"{remote[0]}/*.tar",)), seq_len=4, vocab_size=100)
    shape = validation_shape(one.rows.count, rank=0, world_size=1, global_batch_size=5)
    with Loader(one.rows, shape, 0) as loader:
        assert torch.cat([batch.tokens for batch in loader])[:48, 0].tolist() == [*range(48)]


# counts


def test_remote_shards_without_a_manifest_are_an_error_with_the_command_that_makes_it(s3, web, write_shards: Write) -> None:
    folder = write_shards([3])
    url = put(s3, folder)
    assert f"no manifest.jsonl beside it; make one with `python -m open_lm.shards.manifest {url}`" in refuses(f"{url}/*.tar")
    shutil.copytree(folder, web.folder / "d")
    message = refuses(web.url("d/shard-0000.tar"))
    assert "--dataset-manifest" in message and "--scan-remote-shards" in message
    assert make_manifest([url, "--num-workers", "1"]) == 0
    assert build(f"{url}/*.tar").one_pass() == 3
    s3.put("d/new.tar", (folder / "shard-0000.tar").read_bytes())
    assert "does not name 1 of the shards; make one with `python -m open_lm.shards.manifest --overwrite " in refuses(f"{url}/*.tar")


def test_a_scan_of_remote_shards_is_remembered_until_one_changes(s3, faults, write_shards: Write) -> None:
    folder = write_shards([3, 5])
    url = put(s3, folder)
    files = build(f"{url}/*.tar", scan_remote_shards=True).sources[0].files
    assert files.sequences.tolist() == [3, 5] and files.bytes == tuple(p.stat().st_size for p in sorted(folder.glob("*.tar")))
    faults.requests.clear()
    assert build(f"{url}/*.tar", scan_remote_shards=True).one_pass() == 8
    assert reads(faults, "shard-0001.tar") == 0
    s3.put("d/shard-0001.tar", (write_shards([5, 4]) / "shard-0001.tar").read_bytes())
    assert build(f"{url}/*.tar", scan_remote_shards=True).one_pass() == 7
    assert reads(faults, "shard-0001.tar") == 1


def reads(faults, name: str) -> int:
    return sum(r.startswith("GET ") and name in r for r in faults.requests)


def test_a_manifest_elsewhere_tells_the_counts_of_remote_shards(s3, write_shards: Write) -> None:
    folder = with_manifest(write_shards([3, 5]))
    for path in folder.glob("*.tar"):
        s3.put(f"d/{path.name}", path.read_bytes())
    assert build(s3.url("d/*.tar"), dataset_manifest=(f"{folder}/manifest.jsonl",)).one_pass() == 8
    (folder / "manifest.jsonl").write_text('{"shard": "shard-0000", "num_sequences": 3}')
    assert "does not name shard-0001.tar" in refuses(s3.url("d/*.tar"), dataset_manifest=(str(folder),))


# pipe


def test_a_command_gives_a_shard_without_a_shell(write_shards: Write, tmp_path: Path) -> None:
    folder = with_manifest(write_shards([12] * 4, folder="with space; touch x"))
    manifest = (f"{folder}/manifest.jsonl",)
    pattern = f"pipe:cat '{folder}/shard-{{0000..0003}}.tar'"
    data = build(pattern, allow_pipe=True, dataset_manifest=manifest)
    assert torch.equal(rows(data), rows(build(f"{folder}/*.tar")))
    assert data.description == build(f"{folder}/*.tar").description
    assert "give --allow-pipe" in refuses(pattern, dataset_manifest=manifest)
    assert "by --dataset-manifest" in refuses(pattern, allow_pipe=True)
    assert "no-such-program can't be run" in refuses("pipe:no-such-program shard-0000.tar", allow_pipe=True, dataset_manifest=manifest)


@pytest.mark.parametrize("how", ["import sys; sys.exit('no such key')", "import time; time.sleep(60)"])
def test_a_command_that_fails_or_hangs_is_told(how: str, write_shards: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ATTEMPTS": "2", "DELAY": "0.01", "TIMEOUT": "0.1"}.items():
        monkeypatch.setenv(f"OPENLM_STORAGE_{name}", value)
    folder = with_manifest(write_shards([12, 12]))
    command = (
        f"pipe:{sys.executable} -c \"import sys\nif '0001' in sys.argv[1]: {how}\nsys.stdout.buffer.write(open(sys.argv[1], 'rb').read())\""
    )
    data = build(f"{command} {folder}/shard-{{0000..0001}}.tar", allow_pipe=True, dataset_manifest=(str(folder),))
    with pytest.raises(ValueError, match=r"shard-0001\.tar: .*(status 1: no such key|wrote nothing for)"):
        rows(data, 24)


# what networks do


@pytest.mark.parametrize("fault", [500, 503, "reset", "truncate", "stall", "slow"])
def test_faults_that_pass_change_nothing(fault: int | str, remote, faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLM_STORAGE_TIMEOUT", "0.3")
    url, folder = remote
    data = build(f"{url}/*.tar")
    for name in ("shard-0000", "shard-0002"):
        faults.add(fault, times=2, method="GET", path=name, seconds=0.6)
    assert torch.equal(rows(data), rows(build(f"{folder}/*.tar")))
    assert {planned.times for planned in faults.plan} == {1 if fault == "slow" else 0}  # a body that comes slowly is not asked for again


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=many_processes)])
@pytest.mark.parametrize("fault", [500, "reset", "truncate"])
def test_a_fault_that_stays_stops_the_run_with_the_shard(fault: int | str, workers: int, remote, faults) -> None:
    data = build(f"{remote[0]}/*.tar")
    faults.add(fault, times=10_000, method="GET", path="shard-0002")
    with pytest.raises(ValueError, match=r"s3://.*/d/shard-0002\.tar: (gave up|can.t be reached) after 4 attempts"):
        rows(data, workers=workers)
    assert multiprocessing.active_children() == []


def test_openlm_defect_9_a_missing_shard_stops_the_run_or_is_lost_within_the_share_that_may_be(
    remote, s3, caplog: pytest.LogCaptureFixture
) -> None:
    url, folder = remote
    local = rows(build(f"{folder}/*.tar"))
    gone = (local[:, 0] >= 24) & (local[:, 0] < 36)
    params = DataParams(dataset_manifest=(f"{url}/manifest.jsonl",), data_tolerate_error_p=0.25)
    s3.client.delete_object(Bucket=s3.name, Key="d/shard-0002.tar")
    assert "no such file; check the pattern" in refuses(f"{url}/shard-{{0001..0002}}.tar")
    data = build_train_data(params, seq_len=4, vocab_size=10_000, global_batch_size=8)
    with caplog.at_level(logging.WARNING), Loader(data.rows, LoaderShape(0, 1, 8, 8, 0, 48), 0, tolerate=0.25) as loader:
        found = torch.cat([batch.tokens for batch in loader])
    assert (found[gone] == MASKED).all() and torch.equal(found[~gone], local[~gone])
    assert loader.lost_rows == 12 and caplog.text.count("shard-0002.tar: no such file; its rows are masked") == 1
    with pytest.raises(ValueError, match=r"shard-0002\.tar: no such file; 1[0-2] rows lost, more than --data-tolerate-error-p 0\.2 of"):
        rows(data, tolerate=0.2)
    strict = build_train_data(DataParams(dataset_manifest=params.dataset_manifest), seq_len=4, vocab_size=10_000, global_batch_size=8)
    with pytest.raises(ValueError, match=r"shard-0002\.tar: no such file$"):
        rows(strict)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_fault_of_the_machine_is_no_loss_of_a_shard(number: int, write_shards: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build(f"{with_manifest(write_shards([12] * 4))}/*.tar", data_tolerate_error_p=0.9)

    def fails(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(ValueError, match=rf"shard-000\d\.tar: .*{os.strerror(number)}"):
        rows(data, tolerate=0.9)


@pytest.mark.parametrize("place", ["s3", "pipe"])
def test_a_full_disk_under_the_cache_is_no_loss_of_a_shard(place: str, remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, folder = remote
    kept, pipe = (
        {"data_cache": str(tmp_path / "kept"), "data_tolerate_error_p": 0.9},
        {"dataset_manifest": (str(folder),), "allow_pipe": True},
    )
    command = f"pipe:cat {folder}/shard-{{0000..0003}}.tar"
    data = build(f"{url}/*.tar", **kept) if place == "s3" else build(command, **pipe, **kept)
    monkeypatch.setattr("open_lm.data.cache._BLOCK", 1)
    monkeypatch.setattr("open_lm.data.cache.open", lambda *_, **__: io.FileIO("/dev/full", "wb"), raising=False)
    monkeypatch.setattr(ShardCache, "_locked", lambda self, name: contextlib.nullcontext())
    with pytest.raises(ValueError, match=r"shard-000\d\.tar.* cache .*No space left .*give --data-cache on a disk with more room"):
        rows(data, tolerate=0.9)


def test_a_shard_that_is_always_removed_from_the_cache_is_no_loss(remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build(f"{remote[0]}/*.tar", data_cache=str(tmp_path / "kept"), data_tolerate_error_p=0.9)
    monkeypatch.setattr(ShardCache, "enter", lambda self, shard, stop=None: tmp_path / "gone.tar")
    with pytest.raises(ValueError, match="give a larger --data-cache-size"):
        rows(data, tolerate=0.9)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_shards_that_are_gone_or_broken_at_the_start_are_lost_too(elsewhere: bool, s3, write_shards: Write) -> None:
    folder = with_manifest(write_shards([12] * 4))
    local = rows(build(f"{folder}/*.tar"))
    (folder / "shard-0000.tar").write_bytes(b"no tar" * 2000)
    (folder / "shard-0002.tar").unlink()
    place = put(s3, folder) if elsewhere else str(folder)
    pattern = f"{place}/shard-{{0000..0003}}.tar"
    for options in ({"train_data": (pattern,)}, {"dataset_manifest": (f"{place}/manifest.jsonl",)}):
        how = {"seq_len": 4, "vocab_size": 10_000, "global_batch_size": 8}
        data = build_train_data(DataParams(**options, data_tolerate_error_p=0.5), **how)
        gone = ((local[:, 0] < 12) | (local[:, 0] >= 24) & (local[:, 0] < 36)).nonzero().flatten().tolist()
        found = rows(data, tolerate=0.5)
        assert [i for i, row in enumerate(found) if (row == MASKED).all()] == gone and len(gone) == 24
        with pytest.raises(ValueError, match=r"shard-000[02]\.tar"):
            build_train_data(DataParams(**options), **how)
    with pytest.raises(ValueError, match=r"--val-data .*shard-0002\.tar"):
        access = access_of(DataParams(data_tolerate_error_p=0.5))
        build_validation_data(ValidationParams(val_data=(pattern,)), seq_len=4, vocab_size=100, access=access)
    if not elsewhere:
        (folder / "manifest.jsonl").unlink()
        (folder / "shard-0000.tar").unlink()
        assert "no manifest says how many sequences would be lost with it" in refuses(pattern, data_tolerate_error_p=0.5)


def test_what_was_lost_before_a_resume_counts_with_what_is_lost_after_it(write_shards: Write) -> None:
    folder = with_manifest(write_shards([12] * 4))
    data = build(f"{folder}/*.tar", data_tolerate_error_p=0.25)
    (folder / "shard-0002.tar").unlink()
    lost = (rows(data, tolerate=0.25) == MASKED).all(dim=1)
    before, after = int(lost[:24].sum()), int(lost[24:].sum())
    assert before and after
    for processes in (1, 2):
        parts = []
        for rank in range(processes):
            with Loader(data.rows, LoaderShape(rank, processes, 8, 8, 24, 48), 0, 0.5, rows_before=0, lost_before=before) as loader:
                list(loader)
            parts.append(loader.lost_rows)
        assert sum(parts) == 12
    for rows_before, ends in ((0, False), (48, True)):  # 12 of 48 rows, or of the 96 of a run whose plan is its second one
        with Loader(data.rows, LoaderShape(0, 1, 8, 8, 24, 48), 0, 0.2, rows_before=rows_before, lost_before=before) as loader:
            if ends:
                list(loader)
            else:
                with pytest.raises(ValueError, match=r"more than --data-tolerate-error-p 0\.2 of this process's 48 rows"):
                    list(loader)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("bytes", 10_241, "bytes, its manifest says 10241"),
        ("sha256", "0" * 64, "its manifest says 0000"),
        ("num_sequences", 13, "holds 12 sequences, its manifest says 13"),
    ],
)
def test_a_size_checksum_or_count_that_disagrees_names_the_shard(field: str, value: object, words: str, remote, s3) -> None:
    url, folder = remote
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines[3][field] = value
    s3.put("d/manifest.jsonl", "\n".join(map(json.dumps, lines)).encode())
    with pytest.raises(ValueError, match=rf"^s3://.*shard-0003\.tar: .*{words}"):
        rows(build(f"{url}/*.tar"))
    lost = build(f"{url}/*.tar", data_tolerate_error_p=0.5)
    assert (rows(lost, tolerate=0.5) == MASKED).all(dim=1).sum() >= 11


def test_verifying_finds_a_local_shard_whose_bytes_were_changed(write_shards: Write) -> None:
    folder = with_manifest(write_shards([12, 12]))
    shard = folder / "shard-0001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"[13, 13", b"[31, 13"))
    rows(build(f"{folder}/*.tar"), 24)
    with pytest.raises(ValueError, match=r"shard-0001\.tar: has sha256 .* its manifest says"):
        rows(build(f"{folder}/*.tar", verify_shards=True), 24)


def test_members_that_cannot_be_parsed_stop_the_run_or_lose_their_rows_alone(write_shards: Write) -> None:
    folder = write_shards([20, 20])
    bad = folder / "shard-0001.tar"
    bad.write_bytes(bad.read_bytes().replace(b"[21, 21", b"[21, xx"))
    with pytest.raises(ValueError, match=r"shard-0001\.tar, member 000000000001\.txt: "):
        rows(build(f"{folder}/*.tar", data_tolerate_error_p=0.5), 40, tolerate=0.5)
    data = build(f"{folder}/*.tar", data_tolerate_error_p=0.1, ignore_parse_errors=True)
    found = rows(data, 40, tolerate=0.1)
    assert sorted(found[:, 0].tolist()) == [MASKED, *range(21), *range(22, 40)]
    with pytest.raises(ValueError, match="1 row lost, more than"):
        rows(data, 40, tolerate=0.01)


def test_an_id_outside_the_vocabulary_is_the_reason_told_where_a_member_is_lost_as_well(
    write_tar: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "d/a.tar", [("0.txt", b"[1, 2, 3]"), ("1.txt", b"[1, x, 3]"), ("2.txt", b"[1, 999, 3]")])
    monkeypatch.setattr(stream.ShardReader, "_check_ids", lambda *_: None)  # as ids of uint16, which are looked at together
    params = DataParams(train_data=(f"{tmp_path}/d/a.tar",), data_tolerate_error_p=0.9, ignore_parse_errors=True)
    data = build_train_data(params, seq_len=2, vocab_size=40, global_batch_size=3)
    reader = data.rows.reader(3)
    monkeypatch.setattr(reader._shards, "read_row", lambda shard, row, out: reader._shards.put_row(shard, row, out) or told.append(row))
    told: list[int] = []
    reader.read(np.arange(3))
    assert sorted(told) == [0, 2]


def test_an_id_outside_the_vocabulary_is_never_tolerated(remote) -> None:
    params = DataParams(train_data=(f"{remote[0]}/*.tar",), data_tolerate_error_p=0.9, ignore_parse_errors=True)
    data = build_train_data(params, seq_len=4, vocab_size=40, global_batch_size=8)
    with pytest.raises(ValueError, match="outside the vocabulary of 40"):
        rows(data, tolerate=0.9)


# what it costs


@pytest.mark.parametrize("streams", [8, 1000])
def test_each_shard_is_fetched_once_a_pass_however_many_streams_read_it(streams: int, remote, faults) -> None:
    url, folder = remote
    data = build(f"{url}/*.tar", data_streams=streams)
    faults.requests.clear()
    with Loader(data.rows, LoaderShape(0, 1, 8, streams, 0, 48), 0) as loader:
        assert len(torch.cat([batch.tokens for batch in loader])) == 48
    assert [reads(faults, f"shard-000{i}.tar") for i in range(4)] == [1] * 4
    assert loader.fetched_bytes == sum(p.stat().st_size for p in folder.glob("*.tar"))
    assert "for 48 rows" in loader.log_lines()[0]


@many_processes
def test_processes_that_share_a_cache_fetch_each_shard_once(remote, faults, tmp_path: Path) -> None:
    data = build(f"{remote[0]}/*.tar", data_streams=16, data_cache=str(tmp_path / "kept"))
    faults.requests.clear()
    for rank in range(2):
        with Loader(data.rows, LoaderShape(rank, 2, 8, 16, 0, 48), 2) as loader:
            list(loader)
    assert [reads(faults, f"shard-000{i}.tar") for i in range(4)] == [1] * 4


def test_a_cache_smaller_than_what_is_read_at_a_time_gives_the_same_rows(remote, tmp_path: Path) -> None:
    url, folder = remote
    size = max(p.stat().st_size for p in folder.glob("*.tar"))
    data = build(f"{url}/*.tar", data_cache=str(tmp_path / "kept"), data_cache_size=str(size + 1))
    assert torch.equal(rows(data), rows(build(f"{folder}/*.tar")))
    assert any("these do not fit" in line for line in data.log_lines())
    assert len(list((tmp_path / "kept").glob("*.tar"))) <= 1
    assert "give more" in refuses(f"{url}/*.tar", data_cache=str(tmp_path / "kept"), data_cache_size=str(size - 1))


@pytest.mark.parametrize(
    ("key", "seq_len", "words"),
    [
        ("npy", 4, "each row by itself: about 1 byte is read"),
        ("txt", 4, "each sequence, which is a row, by itself: about 1 byte is read"),
        ("txt", 2, "a sequence as a whole for a row of it: 1 to 2 bytes are read"),
    ],
)
def test_local_shards_are_opened_once_however_many_streams_read_them_and_the_log_says_what_is_read(
    key: str, seq_len: int, words: str, write_shards: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened = with_manifest(write_shards([12] * 4, key=key)), []
    read = stream.read_index
    monkeypatch.setattr(stream, "read_index", lambda path, key: opened.append(path.name) or read(path, key))
    params = DataParams(train_data=(f"{folder}/*.tar",), data_streams=1000)
    data = build_train_data(params, seq_len=seq_len, vocab_size=10_000, global_batch_size=8)
    line = f"data: 4 shards (0.00 GB) are here and are read {words} for each that is used, with any number of streams"
    assert data.log_lines()[-1] == line
    rows(data, data.one_pass())
    assert sorted(opened) == [f"shard-000{i}.tar" for i in range(4)]


def test_a_large_window_opens_each_shard_once_and_the_log_says_how_many_it_lies_in(
    remote, write_shards: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, opened, read = with_manifest(write_shards([3] * 60, folder="many")), [], stream.read_index
    monkeypatch.setattr(stream, "read_index", lambda path, key: opened.append(path.name) or read(path, key))
    data = build(f"{folder}/*.tar", data_streams=2, shuffle_window=400)
    rows(data, 180)
    assert len(opened) == len(set(opened)) == 60
    limit = str(3 * max(p.stat().st_size for p in remote[1].glob("*.tar")))
    for window, shards, fits in ((2, 2, True), (8, 4, False)):  # of 12 rows; windows of 1 and 4 rows of each stream
        cost = build(f"{remote[0]}/*.tar", data_streams=2, shuffle_window=window, data_cache=str(tmp_path / "c"), data_cache_size=limit)
        lines = cost.log_lines()[-3:]
        assert any(f"up to {shards} of them" in line for line in lines)
        assert any("these do not fit" in line for line in lines) != fits


def test_the_start_of_the_log_says_what_reading_costs(remote) -> None:
    lines = build(f"{remote[0]}/*.tar", data_streams=2, disable_buffer=True).log_lines()
    assert "4 shards (0.00 GB) come from elsewhere" in lines[-2] and "up to 2 of them" in lines[-1] and "1.2 times" in lines[-1]


def test_the_first_shard_alone_is_looked_into_before_training(remote, faults) -> None:
    faults.requests.clear()
    build(f"{remote[0]}/*.tar")
    assert [reads(faults, f"shard-000{i}.tar") for i in range(4)] == [1, 0, 0, 0]


def test_a_folder_elsewhere_is_told_apart_from_its_shards(remote) -> None:
    assert f"is a folder; give {remote[0]}/*.tar" in refuses(remote[0])
    assert "no file matches" in refuses(f"{remote[0]}/no*.tar")


def test_processes_without_a_common_cache_fetch_at_most_what_the_start_of_the_log_says(remote, faults, tmp_path: Path) -> None:
    fetched = 0
    for rank in range(4):
        data = build(f"{remote[0]}/*.tar", data_streams=8, data_cache=str(tmp_path / f"kept{rank}"))
        faults.requests.clear()
        with Loader(data.rows, LoaderShape(rank, 4, 8, 8, 0, 48), 0) as loader:
            list(loader)
        fetched += sum(reads(faults, f"shard-000{i}.tar") for i in range(4))
    assert 4 < fetched <= 4 + 8 - 1 and "up to 2.8 times" in data.log_lines()[-1]


def test_the_next_shard_is_fetched_before_it_is_needed(s3, faults, write_shards: Write) -> None:
    url = put(s3, with_manifest(write_shards([300, 300])))
    data = build(f"{url}/*.tar", data_streams=1, disable_buffer=True)
    faults.requests.clear()
    with Loader(data.rows, LoaderShape(0, 1, 8, 1, 0, 600), 0) as loader:
        batches = iter(loader)
        read = torch.cat([next(batches).tokens for _ in range(15)])
        assert sum(reads(faults, f"shard-000{i}.tar") for i in range(2)) == 1
        read = torch.cat([read, *(next(batches).tokens for _ in range(15))])
        deadline = time.monotonic() + 5
        while sum(reads(faults, f"shard-000{i}.tar") for i in range(2)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len({row // 300 for row in read[:, 0].tolist()}) == 1, "no row of the second shard was read"
    assert all(reads(faults, f"shard-000{i}.tar") == 1 for i in range(2))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("s3://b/d/a.tar", "a.tar"),
        ("https://h/d/a.tar?signature=x/y.tar", "a.tar"),
        ("pipe:aws s3 cp s3://b/d/a.tar -", "a.tar"),
        ("pipe:cat 'my d/a b.tar'", "a b.tar"),
    ],
)
def test_a_place_has_the_name_that_its_manifest_knows(place: str, name: str) -> None:
    assert Remote(place).name == name
