import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from open_lm.shards.manifest import read_manifest, write_manifest
from open_lm.shards.manifest_command import main
from open_lm.shards.tar import write_shard


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two folders of two shards with their manifests."""
    for consumer in ("0", "1"):
        entries = [
            write_shard(tmp_path / "data" / consumer / f"shard-{number}.tar", "txt", np.full((9 + number, 5), 7, np.uint16))
            for number in (0, 1)
        ]
        write_manifest(tmp_path / "data" / consumer / "manifest.jsonl", entries)
    return tmp_path / "data"


def verify(capsys: pytest.CaptureFixture, *places: object) -> tuple[int, list[str]]:
    status = main(["--verify", "--num-workers", "1", *map(str, places)])
    said = capsys.readouterr().out.splitlines()
    return status, [line for line in said if " | WARNING | " not in line]  # another test may have set up a log on stdout


def edit(manifest: Path, place: int, **values: object) -> None:
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[place] |= values
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_good_shards_have_no_findings(data: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify(capsys, data) == (0, ["4 shards compared, 0 findings"])
    assert verify(capsys, data / "0" / "manifest.jsonl") == (0, ["2 shards compared, 0 findings"])
    assert verify(capsys, data / "1" / "shard-1.tar") == (0, ["1 shard compared, 0 findings"])
    assert verify(capsys, data / "*" / "shard-{0,1}.tar") == (0, ["4 shards compared, 0 findings"])


def test_places_may_be_relative(data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, place in ((data, "."), (data, "./"), (data.parent, "data"), (data.parent, "./data/")):
        monkeypatch.chdir(folder)
        assert verify(capsys, place) == (0, ["4 shards compared, 0 findings"])
    monkeypatch.chdir(data / "0")
    assert verify(capsys, ".") == verify(capsys, "manifest.jsonl") == (0, ["2 shards compared, 0 findings"])
    assert verify(capsys, "./shard-0.tar") == (0, ["1 shard compared, 0 findings"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_sequences": 8}, "has 9 sequences, its manifest says 8"),
        ({"sha256": "0" * 64}, r"has [0-9a-f]{64} sha256, its manifest says 0000"),
        ({"bytes": 3}, r"has \d+ bytes, its manifest says 3"),
        ({"tokens_per_sequence": 6}, "has 5 tokens a sequence, its manifest says 6"),
    ],
)
def test_each_wrong_figure_is_a_finding(data: Path, capsys: pytest.CaptureFixture, values: dict, words: str) -> None:
    edit(data / "0" / "manifest.jsonl", 0, **values)
    status, lines = verify(capsys, data)
    assert status == 1 and len(lines) == 2 and lines[1] == "4 shards compared, 1 finding"
    assert re.match(rf"{re.escape(str(data / '0' / 'shard-0.tar'))}: {words}", lines[0])


def test_what_a_manifest_leaves_open_is_not_compared(data: Path, capsys: pytest.CaptureFixture) -> None:
    (data / "0" / "manifest.jsonl").write_text('{"shard": "shard-0", "num_chunks": 9}\n{"shard": "shard-1", "num_sequences": 10}')
    assert verify(capsys, data)[0] == 0


def test_missing_unnamed_and_doubly_named_shards_are_findings(data: Path, capsys: pytest.CaptureFixture) -> None:
    (data / "0" / "shard-0.tar").unlink()
    write_shard(data / "0" / "more.tar", "txt", np.zeros((1, 5), np.uint16))
    (data / "1" / "manifest.jsonl").open("a").write('{"shard": "shard-1", "num_sequences": 10}\n')
    status, lines = verify(capsys, data)
    assert status == 1
    assert lines == [
        f"{data}/0/more.tar: no line of {data}/0/manifest.jsonl names it",
        f"{data}/0/shard-0.tar: is missing",
        f"{data}/1/shard-1.tar: {data}/1/manifest.jsonl names it twice",
        "3 shards compared, 3 findings",
    ]


def test_one_flipped_bit_anywhere_in_a_shard_is_found(data: Path, capsys: pytest.CaptureFixture) -> None:
    path = data / "0" / "shard-0.tar"
    whole = path.read_bytes()
    for place in (0, 300, 515, 700, len(whole) - 2000, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        status, lines = verify(capsys, data)
        assert status == 1 and lines[0].startswith(f"{path}: "), place


def test_without_checksums_damage_that_shows_is_found(data: Path, capsys: pytest.CaptureFixture) -> None:
    (data / "0" / "manifest.jsonl").write_text('{"shard": "shard-0", "num_sequences": 9}\n{"shard": "shard-1", "num_sequences": 10}\n')
    path = data / "0" / "shard-0.tar"
    whole = path.read_bytes()
    for content, words in (
        (whole[:3000], "ends inside its member 000000000002.txt; it is not whole"),
        (whole[:2048], "ends without the end mark of a tar"),
        (whole[:2048] + bytes(1024), "has 2 sequences, its manifest says 9"),
        (whole.replace(b"[7, 7, 7, 7, 7]", b"[7, 7, 7, 7, x]", 1), "member 000000000000.txt: is not a list of tokens"),
        (
            whole[: 4 * 1024] + whole[4 * 1024 :].replace(b"[7, 7, 7, 7, 7]", b"[7, 7, 7, 77  ]", 1),
            "member 000000000004.txt: holds sequences of 4",
        ),
        (b"", "is not a tar file"),
    ):
        path.write_bytes(content)
        status, lines = verify(capsys, data)
        assert status == 1 and len(lines) == 2 and lines[0].startswith(f"{path}: {words}"), lines


def test_a_damaged_or_missing_manifest_is_a_finding(data: Path, capsys: pytest.CaptureFixture) -> None:
    (data / "0" / "manifest.jsonl").write_text('{"shard": "shard-0"}\n')
    (data / "1" / "manifest.jsonl").unlink()
    status, lines = verify(capsys, data)
    assert status == 1 and lines[-1] == "0 shards compared, 2 findings"
    assert lines[0].startswith(f"{data}/0/manifest.jsonl, line 1: needs `shard` and `num_sequences`")
    assert lines[1] == f"{data}/1/manifest.jsonl: no such file; make one with python -m open_lm.shards.manifest"
    (data / "0" / "manifest.jsonl").write_text("version https://git-lfs.github.com/spec/v1\n")
    (data / "1" / "manifest.jsonl").write_bytes(b"\x1f\x8b\xff")
    status, lines = verify(capsys, data)
    assert lines[0].startswith(f"{data}/0/manifest.jsonl: is not a manifest but a Git LFS pointer; fetch")
    assert lines[1].startswith(f"{data}/1/manifest.jsonl: is not a manifest but a gzip file; decompress")


def test_a_line_of_a_manifest_ends_at_a_newline_only(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"shard": "a\u2028b", "num_sequences": 1}\r\n{"shard": "c", "num_sequences": 2}')
    assert [entry.shard for entry in read_manifest(str(manifest))] == ["a\u2028b", "c"]


def test_every_folder_below_gets_its_manifest(data: Path, capsys: pytest.CaptureFixture) -> None:
    told = [read_manifest(str(data / c / "manifest.jsonl")) for c in "01"]
    for c in "01":
        (data / c / "manifest.jsonl").unlink()
    assert main([str(data)]) == 0
    assert capsys.readouterr().out.split() == [f"{data}/{c}/manifest.jsonl" for c in "01"]
    assert [read_manifest(str(data / c / "manifest.jsonl")) for c in "01"] == told


def test_members_beside_the_tokens_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in (("a.txt", b"[1, 2]"), ("a.cls", b"1"), ("b.txt", b"[3, '<|endoftext|>']"), ("b.cls", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert main([str(tmp_path)]) == 0
    (entry,) = read_manifest(str(tmp_path / "manifest.jsonl"))
    assert (entry.num_sequences, entry.tokens_per_sequence, entry.bytes) == (2, 2, (tmp_path / "s.tar").stat().st_size)
    assert verify(capsys, tmp_path)[0] == 0
    assert main(["--overwrite", "--data-key", "npy", str(tmp_path)]) == 2
    assert "--data-key npy: the sample of a.txt in" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--verify", "--overwrite"], ["--num-workers", "0"]])
def test_flags_that_can_not_be_are_an_error(data: Path, capsys: pytest.CaptureFixture, flags: list[str]) -> None:
    assert main([*flags, str(data)]) == 2
    assert flags[0] in capsys.readouterr().err


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "open_lm.shards.manifest", *arguments], capture_output=True, text=True, env=dict(os.environ)
    )


@pytest.mark.slow
def test_several_processes_find_what_one_finds(data: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)
    (data / "1" / "shard-1.tar").write_bytes(b"x" * 1000)
    done = command("--verify", "--num-workers", "3", str(data))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0].startswith(f"{data}/1/shard-1.tar: is not a tar file")
    assert done.stdout.splitlines()[1:] == ["4 shards compared, 1 finding"]


@pytest.mark.slow
def test_manifests_of_shards_in_s3_are_made_and_verified(data: Path, s3, capsys: pytest.CaptureFixture) -> None:
    told = {c: (data / c / "manifest.jsonl").read_bytes() for c in "01"}
    for path in data.rglob("*.tar"):
        s3.put(f"v1/{path.relative_to(data)}", path.read_bytes())
    assert main(["--num-workers", "1", s3.url("v1")]) == 0
    assert capsys.readouterr().out.split() == [s3.url(f"v1/{c}/manifest.jsonl") for c in "01"]
    assert {c: s3.get(f"v1/{c}/manifest.jsonl") for c in "01"} == told
    assert main([s3.url("v1/0/shard-0.tar")]) == 2 and "exists; give --overwrite" in capsys.readouterr().err
    for place in ("v1", "v1/", "v1/*/shard-*.tar", "v1/{0,1}/manifest.jsonl"):
        assert verify(capsys, s3.url(place)) == (0, ["4 shards compared, 0 findings"]), place
    s3.put("v1/0/shard-1.tar", (data / "0" / "shard-1.tar").read_bytes()[:-512])
    s3.put("v1/1/shard-2.tar", (data / "0" / "shard-1.tar").read_bytes())
    status, lines = verify(capsys, s3.url("v1"))
    assert status == 1
    assert [line.split(": ")[0] for line in lines[:-1]] == [s3.url("v1/0/shard-1.tar")] * 2 + [s3.url("v1/1/shard-2.tar")]


@pytest.mark.slow
def test_several_processes_read_from_s3(data: Path, s3, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)
    for path in data.rglob("*.*"):
        s3.put(f"v1/{path.relative_to(data)}", path.read_bytes())
    done = command("--verify", "--num-workers", "2", s3.url("v1"))
    assert (done.returncode, done.stdout) == (0, "4 shards compared, 0 findings\n"), done.stderr


@pytest.mark.slow
def test_a_shard_in_s3_is_verified_through_faults(data: Path, s3, faults, capsys: pytest.CaptureFixture) -> None:
    for path in data.rglob("*.*"):
        s3.put(f"v1/{path.relative_to(data)}", path.read_bytes())
    faults.add(503, times=2, method="GET", path="shard-0.tar")
    assert verify(capsys, s3.url("v1")) == (0, ["4 shards compared, 0 findings"])
    assert main(["--verify", s3.url("none")]) == 2
