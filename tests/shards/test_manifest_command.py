from pathlib import Path

import numpy as np
import pytest

from open_lm.shards.manifest import ShardEntry, read_manifest
from open_lm.shards.manifest_command import main
from open_lm.shards.tar import write_shard


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, list[ShardEntry]]:
    counts = {"shard-0.tar": 3, "shard-1.tar": 70}
    entries = [write_shard(tmp_path / name, "npy", np.zeros((n, 5), dtype=np.uint16)) for name, n in counts.items()]
    return tmp_path, entries


def test_the_manifest_of_a_folder_is_what_the_writer_of_its_shards_knew(folder, capsys: pytest.CaptureFixture) -> None:
    path, entries = folder
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path / 'manifest.jsonl'}\n"
    assert read_manifest(str(path / "manifest.jsonl")) == entries


@pytest.mark.parametrize("fmt", ["txt", "json.gz"])
def test_shards_of_lists_are_counted_too(fmt: str, tmp_path: Path) -> None:
    entry = write_shard(tmp_path / "a.tar", fmt, np.zeros((4, 5), dtype=np.uint16))
    assert main([str(tmp_path / "a.tar")]) == 0
    assert read_manifest(str(tmp_path / "manifest.jsonl")) == [entry]


def test_golden_shards_are_counted_as_their_manifest_says(shared: Path, tmp_path: Path) -> None:
    golden = shared / "data/golden/shards_json_gz"
    for shard in golden.glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    assert main([str(tmp_path)]) == 0
    made, told = read_manifest(str(tmp_path / "manifest.jsonl")), read_manifest(str(golden / "manifest.jsonl"))
    assert [(e.shard, e.num_sequences) for e in made] == [(e.shard, e.num_sequences) for e in told]
    assert {e.tokens_per_sequence for e in made} == {97}


def test_an_existing_manifest_is_kept_unless_asked(folder, capsys: pytest.CaptureFixture) -> None:
    path, _ = folder
    (path / "manifest.jsonl").write_text("mine")
    assert main([str(path)]) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err
    assert (path / "manifest.jsonl").read_text() == "mine"
    assert main([str(path), "--overwrite"]) == 0


def test_a_place_without_shards_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 2 and main([str(tmp_path / "no.tar")]) == 2
    assert capsys.readouterr().err.count("no shards there") == 2


def test_a_broken_shard_is_named_and_nothing_is_written(folder, capsys: pytest.CaptureFixture) -> None:
    path, _ = folder
    (path / "shard-1.tar").write_bytes(b"x" * 1000)
    assert main([str(path)]) == 2
    assert "shard-1.tar: is not a tar file" in capsys.readouterr().err
    assert not (path / "manifest.jsonl").exists()
