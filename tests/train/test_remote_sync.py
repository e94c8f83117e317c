"""--remote-sync: what reaches the copy, when, and in which order; and what a failing remote does to it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from open_lm import storage
from open_lm.train.remote_folder import RECORD, RemoteFolder, whole_states
from open_lm.train.remote_resume import fetch_state, newest_of_both
from open_lm.train.remote_sync import RemoteSync, copied, take_snapshot, units


def save_state(folder: Path, step: int, content: bytes = b"tensors") -> Path:
    """A run state as a run leaves it."""
    state = folder / f"checkpoints/step_{step}"
    state.mkdir(parents=True)
    files = {"__0_0.distcp": content * step, ".metadata": b"meta"}
    for name, data in files.items():
        (state / name).write_bytes(data)
    about = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    values = {"step": step, "sequences": 0, "tokens": 0, "global_batch_size": 8, "plan": {}, "model_config": {}, "params": {}}
    (state / "state.json").write_text(json.dumps({**values, "files": about}))
    link = folder / "checkpoints/latest"
    link.unlink(missing_ok=True)
    link.symlink_to(state.name)
    return state


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a log, two states, weights, and what must not be copied."""
    folder = tmp_path / "logs/r"
    for step in (10, 20):
        save_state(folder, step)
    (folder / "out.log").write_text("one\ntwo\nthr")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / ".lock").touch()
    (folder / "checkpoints/epoch_1.pt").write_bytes(b"weights")
    (folder / "checkpoints/.epoch_2.pt.x.tmp").write_bytes(b"half")
    (folder / "checkpoints/.step_30.tmp").mkdir()
    (folder / "checkpoints/.step_30.tmp/__0_0.distcp").write_bytes(b"half")
    (folder / "checkpoints/step_5").mkdir()
    (folder / "checkpoints/step_5/__0_0.distcp").write_bytes(b"no state.json")
    return folder


WHOLE = {
    *("out.log", "metrics.jsonl", "checkpoints/epoch_1.pt", "checkpoints/latest"),
    *(f"checkpoints/step_{n}/{name}" for n in (10, 20) for name in ("__0_0.distcp", ".metadata", "state.json")),
}


@pytest.fixture(params=["s3", "memory", "file", "folder"])
def base(request: Any, tmp_path: Path) -> Iterator[str]:
    """Somewhere to copy to."""
    if request.param == "s3":
        yield request.getfixturevalue("s3").url("runs")
    elif request.param == "memory":
        yield f"memory://runs-{time.time_ns()}/a"
    else:
        yield ("file://" if request.param == "file" else "") + str(tmp_path / "s3data")


def content(remote: RemoteFolder, name: str) -> bytes:
    return storage.read_bytes(remote.url_of(name))


def test_a_pass_copies_what_is_whole_and_nothing_else(run: Path, base: str) -> None:
    remote = RemoteFolder(base, "r")
    sync = RemoteSync(run, remote, 300)
    sync.sync()
    assert sync.missing == []
    assert set(remote.files()) == {name for name in WHOLE if "/." not in name}
    assert content(remote, "out.log") == b"one\ntwo\n"
    assert content(remote, "checkpoints/latest") == b"step_20"
    for name in WHOLE - {"out.log", "checkpoints/latest"}:
        assert content(remote, name) == (run / name).read_bytes()


def test_a_local_folder_named_s3data_is_a_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """compat.md 6 (32)."""
    monkeypatch.chdir(tmp_path)
    RemoteSync(run, RemoteFolder("s3data/", "r"), 300).sync()
    assert (tmp_path / "s3data/r/checkpoints/step_20/state.json").is_file()


def test_what_did_not_change_is_not_copied_again_also_after_a_restart(run: Path, s3: Any, faults: Any) -> None:
    remote = RemoteFolder(s3.url("runs"), "r")
    sync = RemoteSync(run, remote, 300)
    for again in (sync, RemoteSync(run, remote, 300)):
        again.sync()
        (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"step": 2}\n')
        faults.requests.clear()
        again.sync()
        assert {r.split()[1].rpartition("/")[2] for r in faults.requests if r.startswith("PUT")} == {"metrics.jsonl"}
    s3.client.delete_object(Bucket=s3.name, Key="runs/r/checkpoints/epoch_1.pt")
    RemoteSync(run, remote, 300).sync()
    assert s3.get("runs/r/checkpoints/epoch_1.pt") == b"weights"


def test_state_json_is_the_last_of_a_state_and_latest_follows(run: Path, s3: Any, faults: Any) -> None:
    RemoteSync(run, RemoteFolder(s3.url("runs"), "r"), 300).sync()
    put = [r.split()[1].partition("/r/")[2].partition("?")[0] for r in faults.requests if r.startswith("PUT")]
    for step in (10, 20):
        of_state = [name for name in put if f"step_{step}/" in name]
        assert of_state[-1] == f"checkpoints/step_{step}/state.json" and len(of_state) == 3
    assert put.index("checkpoints/latest") > put.index("checkpoints/step_20/state.json")


def test_a_state_that_is_written_anew_is_not_whole_there_while_it_is_copied(run: Path, s3: Any, faults: Any) -> None:
    remote = RemoteFolder(s3.url("runs"), "r")
    sync = RemoteSync(run, remote, 300)
    sync.sync()
    shutil.rmtree(run / "checkpoints/step_20")
    save_state(run, 20, b"another run of the same steps")
    faults.add(403, times=99, method="PUT", path="step_20/__0_0")
    sync.sync()
    assert whole_states(remote.files()) == [10]
    faults.clear()
    sync.sync()
    assert whole_states(remote.files()) == [20, 10]
    assert content(remote, "checkpoints/step_20/__0_0.distcp") == (run / "checkpoints/step_20/__0_0.distcp").read_bytes()


def test_faults_that_pass_are_overcome(run: Path, s3: Any, faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLM_STORAGE_TIMEOUT", "1")
    for what, path in ((500, "out.log"), ("reset", "__0_0"), ("stall", "epoch_1"), ("lost", "state.json"), ("damage", "metrics")):
        faults.add(what, method="PUT", path=path)
    sync = RemoteSync(run, RemoteFolder(s3.url("runs"), "r"), 300)
    sync.sync()
    assert sync.missing == [] and not any(fault.times for fault in faults.plan)
    for name in WHOLE - {"out.log", "checkpoints/latest"}:
        assert s3.get(f"runs/r/{name}") == (run / name).read_bytes()


def test_a_failing_file_is_named_and_the_others_are_copied(run: Path, s3: Any, faults: Any) -> None:
    faults.add(403, times=99, method="PUT", path="epoch_1.pt")
    with pytest.raises(ValueError, match=r"the copy is not complete .*access denied.*checkpoints/epoch_1.pt\. .*--resume latest"):
        with copied(run, RemoteFolder(s3.url("runs"), "r"), 300):
            pass
    assert whole_states(RemoteFolder(s3.url("runs"), "r").files()) == [20, 10]


def test_a_dead_remote_is_given_up_after_three_files(run: Path, s3: Any, faults: Any) -> None:
    sync = RemoteSync(run, RemoteFolder(s3.url("runs"), "r"), 300)
    faults.add(503, times=999, method="PUT")
    sync.sync()
    assert len([r for r in faults.requests if r.startswith("PUT")]) <= 3 * 4 * 4
    assert set(sync.missing) == WHOLE - {"checkpoints/latest"}
    faults.clear()
    sync.sync()
    assert sync.missing == []


def test_the_first_copy_is_made_at_once_and_the_last_at_the_end(run: Path, tmp_path: Path) -> None:
    """compat.md 6 (31)."""
    remote = RemoteFolder(str(tmp_path / "there"), "r")
    begin = time.monotonic()
    with copied(run, remote, 300):
        while "checkpoints/latest" not in (remote.files() if (tmp_path / "there/r").exists() else {}):
            time.sleep(0.01)
            assert time.monotonic() - begin < 10
        save_state(run, 30)
    assert time.monotonic() - begin < 10
    assert whole_states(remote.files()) == [30, 20, 10] and content(remote, "checkpoints/latest") == b"step_30"


def test_after_an_exception_nothing_more_is_copied(run: Path, tmp_path: Path) -> None:
    remote = RemoteFolder(str(tmp_path / "there"), "r")
    with pytest.raises(RuntimeError), copied(run, remote, 300):
        while not (tmp_path / "there/r/checkpoints/latest").exists():
            time.sleep(0.01)
        save_state(run, 30)
        raise RuntimeError
    assert whole_states(remote.files()) == [20, 10]


def test_what_the_run_deleted_goes_from_the_copy_too(run: Path, base: str) -> None:
    remote = RemoteFolder(base, "r")
    RemoteSync(run, remote, 300).sync()
    save_state(run, 30)
    for step in (10, 20):
        shutil.rmtree(run / f"checkpoints/step_{step}")
    (run / "checkpoints/epoch_1.pt").unlink()
    (run / "metrics.jsonl").unlink()
    RemoteSync(run, remote, 300).sync()  # a restarted run knows what was copied before
    names = remote.files()
    assert whole_states(names) == [30] and "checkpoints/step_10/__0_0.distcp" not in names
    assert {"checkpoints/epoch_1.pt", "metrics.jsonl"} <= set(names)  # the last weights, and logs, stay


@pytest.mark.parametrize("links", [True, False])
def test_a_run_that_saves_faster_than_it_copies_has_its_states_copied_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, links: bool
) -> None:
    """Each state goes while it is copied, as with --keep-last 1."""
    remote, upload = RemoteFolder(str(tmp_path / "there"), "r"), storage.upload
    shutil.rmtree(run / "checkpoints/step_10")

    def overtaken(path: Path, url: str, *rest: Any) -> None:
        upload(path, url, *rest)
        if url.endswith("__0_0.distcp"):
            now = int(url.split("step_")[1].split("/")[0])
            shutil.rmtree(run / f"checkpoints/step_{now}")
            (run / f"checkpoints/epoch_{now // 10 - 1}.pt").unlink()
            save_state(run, now + 10)
            (run / f"checkpoints/epoch_{now // 10}.pt").write_bytes(b"weights")

    def no_links(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(storage, "upload", overtaken)
    if not links:
        monkeypatch.setattr("os.link", no_links)
    sync = RemoteSync(run, remote, 300)
    for step in (20, 30, 40):
        sync.sync()
        assert sync.missing == []
        assert whole_states(remote.files()) == ([step] if links else [])
        assert not links or content(remote, "checkpoints/latest") == f"step_{step}".encode()
        assert not list(run.glob(".remote_sync.held*"))
    assert ("deleted faster than they are copied" in caplog.text) != links
    monkeypatch.setattr(storage, "upload", upload)
    sync.sync()
    names = remote.files()
    assert whole_states(names) == [50] and content(remote, "checkpoints/latest") == b"step_50"
    assert [name for name in names if name.endswith(".pt")] == ["checkpoints/epoch_4.pt"]


def test_states_that_another_machine_left_stay(run: Path, tmp_path: Path) -> None:
    remote = RemoteFolder(str(tmp_path / "there"), "r")
    RemoteSync(run, remote, 300).sync()
    empty = tmp_path / "other/r"
    newest_of_both(empty, remote)
    RemoteSync(empty, remote, 300).sync()
    assert whole_states(remote.files()) == [20, 10]


def test_an_empty_machine_gets_the_newest_whole_state_and_the_logs(run: Path, base: str, tmp_path: Path) -> None:
    remote = RemoteFolder(base, "r")
    RemoteSync(run, remote, 300).sync()
    remote.remove("checkpoints/step_20/__0_0.distcp")
    empty = tmp_path / "empty/r"
    found = newest_of_both(empty, remote)
    assert found is not None and found[0] == str(empty / "checkpoints/step_10") and found[1].step == 10
    got = {p.relative_to(empty).as_posix() for p in empty.rglob("*") if p.is_file()} - {RECORD, "checkpoints/.fetch.lock"}
    assert got == {"out.log", "metrics.jsonl", *(n for n in WHOLE if "step_10/" in n)}
    assert (empty / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_a_damaged_copy_gives_way_to_the_one_before(run: Path, tmp_path: Path) -> None:
    remote = RemoteFolder(str(tmp_path / "there"), "r")
    RemoteSync(run, remote, 300).sync()
    damaged = tmp_path / "there/r/checkpoints/step_20/__0_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="step_20: __0_0.distcp is not as it was written"):
        fetch_state(tmp_path / "empty/r", remote, 20)
    found = newest_of_both(tmp_path / "empty/r", remote)
    assert found is not None and found[1].step == 10
    assert {p.name for p in (tmp_path / "empty/r/checkpoints").iterdir()} == {"step_10", ".fetch.lock"}


def test_the_newer_of_run_folder_and_copy_is_taken(run: Path, tmp_path: Path) -> None:
    remote = RemoteFolder(str(tmp_path / "there"), "r")
    RemoteSync(run, remote, 300).sync()
    older = tmp_path / "older/r"
    save_state(older, 10)
    (older / "metrics.jsonl").write_text("old\n")
    found = newest_of_both(older, remote)
    assert found is not None and found[1].step == 20 and (older / "metrics.jsonl").read_text() == '{"step": 1}\n'
    save_state(older, 40)
    found = newest_of_both(older, remote)
    assert found is not None and found[1].step == 40
    assert newest_of_both(tmp_path / "x/new", RemoteFolder(str(tmp_path / "there"), "new")) is None


def test_faults_while_a_state_is_fetched_are_overcome(run: Path, s3: Any, faults: Any, tmp_path: Path) -> None:
    remote = RemoteFolder(s3.url("runs"), "r")
    RemoteSync(run, remote, 300).sync()
    for what, path in ((500, "state.json"), ("reset", "__0_0"), ("truncate", ".metadata")):
        faults.add(what, method="GET", path=path)
    state = fetch_state(tmp_path / "empty/r", remote, 20)
    assert not any(fault.times for fault in faults.plan)
    assert (state / "__0_0.distcp").read_bytes() == (run / "checkpoints/step_20/__0_0.distcp").read_bytes()


def test_without_its_copy_an_empty_machine_stops_and_a_full_one_goes_on(run: Path, s3: Any, faults: Any, tmp_path: Path) -> None:
    remote = RemoteFolder(s3.url("runs"), "r")
    faults.add(503, times=99)
    with pytest.raises(ValueError, match="a run whose states may be there would start again"):
        newest_of_both(tmp_path / "empty/r", remote)
    found = newest_of_both(run, remote)
    assert found is not None and found[1].step == 20


def test_a_crafted_state_writes_nothing_outside_its_folder(run: Path, tmp_path: Path) -> None:
    remote = RemoteFolder(str(tmp_path / "there"), "r")
    state = run / "checkpoints/step_20/state.json"
    state.write_text(json.dumps({"files": {"../../evil": {"bytes": 0, "sha256": ""}}}))
    RemoteSync(run, remote, 300).sync()
    with pytest.raises(ValueError, match="outside its folder"):
        fetch_state(tmp_path / "empty/r", remote, 20)


def test_a_snapshot_of_a_growing_log_ends_with_a_whole_line(tmp_path: Path) -> None:
    for text, kept in (("a\nb", "a\n"), ("a", ""), ("", ""), ("a\n" + "x" * 200_000, "a\n"), ("a\n", "a\n")):
        (tmp_path / "m.jsonl").write_text(text)
        assert take_snapshot(tmp_path / "m.jsonl", tmp_path / "copy")[0] == len(text)
        assert (tmp_path / "copy").read_text() == kept


def test_what_proves_that_a_copy_is_one_of_a_run_is_copied_first(tmp_path: Path) -> None:
    for name in ("config.yaml", "out.log", "params.txt"):
        (tmp_path / name).touch()
    assert list(units(tmp_path)) == [["params.txt"], ["config.yaml"], ["out.log"]]
