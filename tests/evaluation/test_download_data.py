"""eval/download_data.py: the data of task files from a mirror or GitHub, checked."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from open_lm.evaluation.download import GitHub, Mirror, download, git_hash, wanted_files
from open_lm.params.fields import UserError

if TYPE_CHECKING:
    from remote.web import WebServer

NAME = "local_data/world_knowledge/arc_easy.jsonl"
OTHER = "local_data/copa.jsonl"
ROW = b'{"query": "a", "choices": ["b"], "gold": 0}\n'


def put(folder: Path, name: str, data: bytes = ROW) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("inside", [True, False], ids=["holds local_data", "is local_data"])
def test_a_mirror_gives_what_it_has_and_the_rest_is_named(inside: bool, tmp_path: Path) -> None:
    put(tmp_path / "mirror", NAME)
    mirror = tmp_path / "mirror" if inside else tmp_path / "mirror/local_data"
    report = download([NAME, OTHER], tmp_path / "eval", lambda: Mirror(str(mirror)))
    assert (report.there, report.fetched, report.missing, report.failed) == ([], [NAME], [OTHER], {})
    assert (tmp_path / "eval" / NAME).read_bytes() == ROW
    again = download([NAME], tmp_path / "eval", lambda: pytest.fail("nothing is needed"))
    assert again.there == [NAME]


def test_a_file_that_changed_since_is_fetched_again_and_the_users_own_is_left(tmp_path: Path) -> None:
    put(tmp_path / "mirror", NAME)
    put(tmp_path / "mirror", OTHER)
    put(tmp_path / "eval", OTHER, b'{"my": "own"}\n')
    download([NAME], tmp_path / "eval", lambda: Mirror(str(tmp_path / "mirror")))
    put(tmp_path / "eval", NAME, ROW[:20])
    report = download([NAME, OTHER], tmp_path / "eval", lambda: Mirror(str(tmp_path / "mirror")))
    assert report.fetched == [NAME] and report.there == [OTHER]
    assert (tmp_path / "eval" / NAME).read_bytes() == ROW and b"own" in (tmp_path / "eval" / OTHER).read_bytes()


def test_damage_and_pages_that_are_no_data_are_not_kept(tmp_path: Path) -> None:
    put(tmp_path / "mirror", NAME)
    put(tmp_path / "mirror", OTHER, b"<html>log in first</html>")
    put(tmp_path / "mirror", "local_data/SHA256SUMS", f"{hashlib.sha256(b'x').hexdigest()}  ./x\n".replace("./x", NAME).encode())
    report = download([NAME, OTHER], tmp_path / "eval", lambda: Mirror(str(tmp_path / "mirror")))
    assert "is not what SHA256SUMS of the mirror says" in report.failed[NAME] and "isn't jsonl" in report.failed[OTHER]
    assert not (tmp_path / "eval" / NAME).exists() and not (tmp_path / "eval" / OTHER).exists()


def test_files_from_github_have_the_git_hash_that_it_lists(tmp_path: Path, web: WebServer) -> None:
    assert git_hash(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    put(web.folder, f"files/v1/{NAME}")
    put(web.folder, f"files/v1/{OTHER}", b'{"cut": ')
    listed = [{"path": f"scripts/eval/{name}", "type": "blob", "sha": git_hash(ROW)} for name in (NAME, OTHER)]
    put(web.folder, "tree/v1", json.dumps({"tree": listed}).encode())
    source = GitHub("v1", web.url("tree/{revision}"), web.url("files/{revision}"))
    report = download([NAME, OTHER, "local_data/none.jsonl"], tmp_path, lambda: source)
    assert report.fetched == [NAME] and report.missing == ["local_data/none.jsonl"]
    assert "came damaged" in report.failed[OTHER]
    with pytest.raises(ValueError, match="LLM Foundry v2 can't be read .*give --mirror"):
        GitHub("v2", web.url("tree/{revision}"), web.url("files/{revision}"))


def test_the_files_are_those_that_task_files_name(repo: Path, tmp_path: Path) -> None:
    names = wanted_files([str(repo / "eval/light.yaml"), str(repo / "eval/openlm_table.yaml")])
    assert NAME in names and len(names) == len(set(names)) == 12
    (tmp_path / "no.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"no\.yaml: not a YAML"):
        wanted_files([str(tmp_path / "no.yaml")])


@pytest.mark.parametrize(
    "name", ["local_data/../evil.jsonl", "local_data/a/../../../evil.jsonl", "/evil.jsonl", "local_data/..\\evil.jsonl"]
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    put(tmp_path / "mirror", "evil.jsonl")
    with pytest.raises(UserError, match="leads out of local_data"):
        download([name], tmp_path / "deep/eval", lambda: Mirror(str(tmp_path / "mirror")))
    assert not (tmp_path / "deep").exists()
    (tmp_path / "y.yaml").write_text(f"icl_tasks: [{{dataset_uri: eval/{name}}}]")
    if name.startswith("local_data"):
        with pytest.raises(UserError, match=r"y\.yaml: dataset_uri .*leads out of local_data"):
            wanted_files([str(tmp_path / "y.yaml")])


@pytest.mark.slow
def test_the_command_says_what_is_missing(repo: Path, tmp_path: Path) -> None:
    put(tmp_path, "mirror/local_data/commonsense_reasoning/copa.jsonl")
    arguments = ["--eval-yaml", str(repo / "eval/light.yaml"), "--mirror", "mirror", "--output-dir", "here"]
    done = subprocess.run([sys.executable, repo / "eval/download_data.py", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "1 fetched" in done.stdout
    assert done.stderr.count("missing: local_data/") == 3
