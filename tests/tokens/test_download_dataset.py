"""A dataset becomes jsonl.zst files in train, val and test: every document once, on the side its id says, also after an interruption."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from loopback_hub import hub

from open_lm.executor import LocalExecutor
from open_lm.tokens.reading.inputs import InputFile
from open_lm.tokens.tools import download as module
from open_lm.tokens.tools.download import Wanted, Written, deal, download
from open_lm.tokens.tools.hub_dataset import choose_files, match_files
from open_lm.tokens.tools.hub_listing import dataset_files, dataset_folder
from open_lm.tokens.tools.split import SPLITS, parse_fractions, split_of

FRACTIONS = (0.8, 0.1, 0.1)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three files of 100 documents in one subset, one of 50 in another."""
    folder = tmp_path / "dataset"
    for subset, files, documents in (("en", 3, 100), ("de", 1, 50)):
        (folder / subset).mkdir(parents=True)
        for number in range(files):
            lines = [json.dumps({"id": f"{number}-{i}", "text": f"{subset} {number} {i} é\n" * 20}) for i in range(documents)]
            (folder / subset / f"train-{number:05d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(dataset: Path, out: Path, subset: str = "en", overwrite: bool = False, **wanted: object) -> Written:
    files = dataset_files(str(dataset), subset, "train", ())
    chosen = {"text_key": "text", "id_key": "id", "split_fractions": FRACTIONS, "max_documents": None, "num_files": len(files), **wanted}
    return download(files, str(out), Wanted(**chosen), {"dataset": "x"}, LocalExecutor(1), overwrite)  # type: ignore[arg-type]


def stored(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def documents(out: Path, split: str) -> list[dict[str, str]]:
    found = []
    for path in sorted((out / split).glob("*.jsonl.zst")):
        reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes()), read_across_frames=True)
        found += [json.loads(line) for line in reader.read().splitlines()]
    return found


def test_every_document_is_in_the_split_of_its_id(dataset: Path, tmp_path: Path) -> None:
    written = run(dataset, tmp_path / "out")
    by_split = {split: documents(tmp_path / "out", split) for split in SPLITS}
    assert {split: len(found) for split, found in by_split.items()} == written.documents
    everything = [document for found in by_split.values() for document in found]
    assert sorted(d["id"] for d in everything) == sorted(f"{n}-{i}" for n in range(3) for i in range(100))
    assert all(split_of(d["id"], FRACTIONS) == split for split, found in by_split.items() for d in found)
    assert all(d["text"] == f"en {d['id'].replace('-', ' ')} é\n" * 20 for d in everything)
    assert sum(written.utf8_bytes.values()) == sum(len(d["text"].encode()) for d in everything)
    assert sorted(p.name for p in (tmp_path / "out/train").iterdir()) == ["00000.jsonl.zst", "00001.jsonl.zst", "00002.jsonl.zst"]


def test_without_an_id_the_text_decides(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "out", id_key=None)
    for split in SPLITS:
        assert all(set(d) == {"text"} and split_of(d["text"], FRACTIONS) == split for d in documents(tmp_path / "out", split))


def test_a_killed_download_ends_with_the_bytes_of_an_undisturbed_one(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dataset, tmp_path / "calm")
    real = module._do
    tasks: list[int] = []

    def dying(task: module._Task) -> Written:
        if len(tasks) == 1:
            (tmp_path / "out/train/.00001.jsonl.zst.abcd_123.tmp").write_bytes(b"half")
            raise OSError("the network is gone")
        tasks.append(task.number)
        return real(task)

    monkeypatch.setattr(module, "_do", dying)
    with pytest.raises(OSError, match="network"):
        run(dataset, tmp_path / "out")
    monkeypatch.setattr(module, "_do", real)
    before = (tmp_path / "out/train/00000.jsonl.zst").stat().st_ino
    run(dataset, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(tmp_path / "calm")
    assert (tmp_path / "out/train/00000.jsonl.zst").stat().st_ino == before, "what was whole is not fetched again"


def test_a_complete_download_is_left_alone_and_another_one_is_refused(dataset: Path, tmp_path: Path) -> None:
    first = run(dataset, tmp_path / "out")
    before = stored(tmp_path / "out")
    assert run(dataset, tmp_path / "out") == first and stored(tmp_path / "out") == before
    with pytest.raises(ValueError, match=r"--output-dir .*: holds another download \(other --split-fractions\)") as error:
        run(dataset, tmp_path / "out", split_fractions=(0.5, 0.5, 0.0))
    assert "\n" not in str(error.value) and stored(tmp_path / "out") == before
    (tmp_path / "out/train/notes.txt").write_text("mine")
    run(dataset, tmp_path / "out", split_fractions=(0.5, 0.5, 0.0), num_files=1, overwrite=True)
    assert sorted(stored(tmp_path / "out")) == ["download.json", "train/00000.jsonl.zst", "train/notes.txt", "val/00000.jsonl.zst"]


def test_a_folder_with_other_things_is_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    (tmp_path / "out/train").mkdir()
    (tmp_path / "out/train/00000.jsonl.zst").write_text("mine")
    before = stored(tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"--output-dir .*out: is not empty, and no download.json tells that this program wrote there"):
            run(dataset, tmp_path / "out", overwrite=overwrite)
    assert stored(tmp_path / "out") == before


def test_a_download_that_finds_nothing_takes_no_folder_and_leaves_files_of_others(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="check --text-key"):
        run(dataset, tmp_path / "out", text_key="body")
    (tmp_path / "out/.parts/mine.json").write_text("mine")
    (tmp_path / "out/train").mkdir(exist_ok=True)
    (tmp_path / "out/train/.mine.tmp").write_text("mine")
    assert run(dataset, tmp_path / "out").total
    assert run(dataset, tmp_path / "out", num_files=1, overwrite=True).total
    assert (tmp_path / "out/.parts/mine.json").exists() and (tmp_path / "out/train/.mine.tmp").exists()


@pytest.mark.parametrize("most, files", [(1, 3), (100, 1), (130, 3), (1000, 2)])
def test_max_documents_takes_the_first(dataset: Path, tmp_path: Path, most: int, files: int) -> None:
    written = run(dataset, tmp_path / "out", max_documents=most, num_files=files)
    found = {d["id"] for split in SPLITS for d in documents(tmp_path / "out", split)}
    assert found == set([f"{n}-{i}" for n in range(3) for i in range(100)][:most])
    assert written.total == min(most, 300)


def test_parquet_gives_the_same_as_lines(dataset: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    run(dataset, tmp_path / "lines")
    for path in sorted((dataset / "en").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet"), row_group_size=37)
        path.unlink()
    run(dataset, tmp_path / "table")
    for split in SPLITS:
        assert documents(tmp_path / "table", split) == documents(tmp_path / "lines", split)
    with pytest.raises(ValueError, match=r"--id-key name: .* has no such column; it has id, text"):
        run(dataset, tmp_path / "other", id_key="name")


def test_documents_without_text_or_id_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"id": 1, "text": "one"}\n\n{"text": "two"}\n{"id": 3}\nnonsense\n{"id": 5, "text": 7}\n')
    files = dataset_files(str(tmp_path / "in"), None, "train", ())
    written = download(files, str(tmp_path / "out"), Wanted("text", "id", (1, 0, 0), None, 1), {}, LocalExecutor(1), False)
    assert written.documents == {"train": 1, "val": 0, "test": 0} and written.refused == 4
    reasons = ["line 3: has no id in 'id'", "line 4: has no 'text'", "line 5: is not JSON", "line 6: has a 'text' of type int"]
    assert all(reason in said for reason, said in zip(reasons, written.refusals, strict=True))
    with pytest.raises(ValueError, match="none of them with a text; the first is .*a.jsonl, line 1: has no 'body'; check --text-key"):
        download(files, str(tmp_path / "none"), Wanted("body", None, (1, 0, 0), None, 1), {}, LocalExecutor(1), False)


@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=12), data=st.data())
def test_files_are_dealt_in_order_and_none_is_left(sizes: list[int], data: st.DataObject) -> None:
    files = [InputFile(str(i), size, "lines", None) for i, size in enumerate(sizes)]
    number = data.draw(st.integers(1, len(files)))
    runs = deal(files, number)
    assert len(runs) == number and all(runs) and [file for run in runs for file in run] == files


def test_files_are_dealt_about_equally() -> None:
    files = [InputFile(str(i), 10, "lines", None) for i in range(41)]
    assert {len(run) for run in deal(files, 8)} == {5, 6}
    with pytest.raises(ValueError, match="--num-files 42: the dataset has 41 files; give 41 or fewer"):
        deal(files, 42)


def test_the_shares_of_the_splits_are_kept() -> None:
    found = [split_of(str(i), (0.7, 0.2, 0.1)) for i in range(20_000)]
    for split, share in zip(SPLITS, (0.7, 0.2, 0.1)):
        assert found.count(split) / len(found) == pytest.approx(share, abs=0.01)
    assert {split_of(str(i), (0, 1, 0)) for i in range(100)} == {"val"}


def test_a_share_of_nothing_gets_nothing_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hashlib.sha256", lambda _: type("Last", (), {"digest": lambda self: b"\xff" * 32})())
    assert split_of("any", (0.5, 0.4999999999, 0.0)) == "val" and split_of("any", (0.5, 0.4, 0.1)) == "test"


@pytest.mark.parametrize("text", ["0.5,0.5", "0.9,0.2,0.1", "a,b,c", "1.5,-0.5,0", "", "nan,0,1"])
def test_shares_that_can_not_be_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--split-fractions .*: give the shares of train, val, test"):
        parse_fractions(text)


README = """---
license: mit
configs:
- config_name: 20231101.de
  data_files: [{split: train, path: 20231101.de/train-*}]
- config_name: 20231101.en
  data_files:
  - split: train
    path: 20231101.en/train-*
  - split: test
    path: [20231101.en/test-a.parquet, "20231101.en/test-b*"]
---
# Wikipedia
"""
NAMES = [f"20231101.{c}/{s}.parquet" for c in ("de", "en") for s in ("train-0", "train-1", "test-a", "test-b7")] + ["other/x.jsonl"]


def test_the_readme_says_what_a_subset_holds() -> None:
    assert choose_files(NAMES, README, "20231101.en", "train") == ["20231101.en/train-0.parquet", "20231101.en/train-1.parquet"]
    assert choose_files(NAMES, README, "20231101.en", "test") == ["20231101.en/test-a.parquet", "20231101.en/test-b7.parquet"]
    for subset, split, message in (
        (None, "train", "--subset: missing; the dataset has 20231101.de, 20231101.en"),
        ("en", "train", "--subset en: the dataset has none of that name; it has 20231101.de, 20231101.en"),
        ("20231101.de", "test", "--split test: the subset 20231101.de has none of that name; it has train"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_files(NAMES, README, subset, split)


def test_one_subset_or_a_default_one_needs_no_name() -> None:
    one = "---\nconfigs:\n- config_name: all\n  data_files: other/*\n---\n"
    assert choose_files(NAMES, one, None, "train") == ["other/x.jsonl"]
    two = "---\nconfigs:\n- config_name: a\n  data_dir: 20231101.de\n- config_name: default\n  data_files: {train: other/x.jsonl}\n---"
    assert choose_files(NAMES, two, None, "train") == ["other/x.jsonl"]
    assert choose_files(NAMES, two, "a", "test") == ["20231101.de/test-a.parquet", "20231101.de/test-b7.parquet"]


def test_without_a_readme_folders_and_words_decide() -> None:
    for readme in ("", "# no block", "---\n: [\n---\n", "---\nlicense: mit\n---\n"):
        assert choose_files(NAMES, readme, "20231101.de", "train") == ["20231101.de/train-0.parquet", "20231101.de/train-1.parquet"]
    assert choose_files(["a.jsonl", "b.jsonl"], "", None, "train") == ["a.jsonl", "b.jsonl"]
    assert choose_files(["dev.jsonl", "train.jsonl", "trainers.jsonl"], "", None, "validation") == ["dev.jsonl"]
    assert choose_files(["dev.jsonl", "train.jsonl", "trainers.jsonl"], "", None, "train") == ["train.jsonl"]
    with pytest.raises(ValueError, match="--split test: no file"):
        choose_files(["train.jsonl"], "", None, "test")
    with pytest.raises(ValueError, match="--subset fr: .* it has 20231101.de, 20231101.en, other"):
        choose_files(NAMES, "", "fr", "train")


def test_files_can_be_named() -> None:
    assert match_files(NAMES, ["other/", "*/test-a*"]) == ["20231101.de/test-a.parquet", "20231101.en/test-a.parquet", "other/x.jsonl"]
    with pytest.raises(ValueError, match=r"--files \*.csv: matches no file of a known kind; there are 20231101.de/train-0.parquet"):
        match_files(NAMES, ["*.csv"])


def test_a_name_is_a_dataset_of_the_hub_unless_it_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dataset_folder("wikimedia/wikipedia", None) == "hf://datasets/wikimedia/wikipedia"
    assert dataset_folder("wikimedia/wikipedia", "refs/pr/1") == "hf://datasets/wikimedia/wikipedia@refs%2Fpr%2F1"
    (tmp_path / "wikimedia/wikipedia").mkdir(parents=True)
    assert dataset_folder("wikimedia/wikipedia", None) == "wikimedia/wikipedia"
    assert dataset_folder("s3://bucket/data/", None) == "s3://bucket/data"
    with pytest.raises(ValueError, match="--revision x: only a dataset on the Hugging Face hub"):
        dataset_folder("s3://bucket/data", "x")
    with pytest.raises(ValueError, match=r"--dataset ./nothing: no such folder"):
        dataset_folder("./nothing", None)


def command(repo: Path, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, repo / "datapreprocess/download_dataset.py", *map(str, arguments)]
    settings = {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "OPENLM_STORAGE_ATTEMPTS": "2", "OPENLM_STORAGE_DELAY": "0.01"}
    return subprocess.run(line, cwd=cwd, env={**os.environ, **settings, **environment}, capture_output=True, text=True)


@pytest.mark.slow
def test_a_dataset_comes_from_the_hub(repo: Path, dataset: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [json.loads(line) for line in (dataset / "en/train-00000.jsonl").read_text(encoding="utf-8").splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), dataset / "en/train-00000.parquet", row_group_size=50)
    (dataset / "en/train-00000.jsonl").unlink()
    (dataset / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: [{split: train, path: en/train-*}]\n---\n")
    run(dataset, tmp_path / "local")
    options = ("--dataset", "me/words", "--subset", "en", "--id-key", "id", "--split-fractions", "0.8,0.1,0.1", "--output-dir", "out")
    with hub(dataset, "me/words") as (endpoint, requests):
        done = command(repo, *options, "--num-workers", 2, cwd=tmp_path, HF_ENDPOINT=endpoint)
        assert done.returncode == 0, done.stderr
        assert any("/resolve/" in request and "bytes=" in request for request in requests)
        missing = command(repo, "--dataset", "me/nothing", "--output-dir", "nowhere", cwd=tmp_path, HF_ENDPOINT=endpoint)
    for split in SPLITS:
        assert documents(tmp_path / "out", split) == documents(tmp_path / "local", split)
        assert f"out/{split}: {len(documents(tmp_path / 'local', split)):,} documents" in done.stdout
    assert missing.returncode == 2
    assert (
        missing.stderr
        == "--dataset hf://datasets/me/nothing: there is none on the hub, or only with an HF_TOKEN; check name and --revision\n"
    )


@pytest.mark.slow
def test_without_a_network_one_line_says_so(repo: Path, tmp_path: Path) -> None:
    done = command(repo, "--dataset", "me/words", "--output-dir", "out", cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("hf://datasets/me/words: http://127.0.0.1:1 can't be reached") and "HF_ENDPOINT" in done.stderr
    assert not (tmp_path / "out").exists()
    done = command(repo, "--num-files", "0", "--split-fractions", "1", "--output-dir", "s3://a/b", cwd=tmp_path)
    assert done.returncode == 2 and [line.split()[0] for line in done.stderr.splitlines()] == [
        *("--split-fractions", "--dataset:", "--output-dir", "--num-files")
    ]
