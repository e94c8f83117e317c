"""What inspection shows is what the loader gave, and what the documents say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_lm.data.history import read_history
from open_lm.data.inspect import SYNTHETIC, RunData, batch
from open_lm.data.inspect_page import Shown, borders, page
from open_lm.data.loader import Loader
from open_lm.data.order_file import first_difference, read_order, write_order
from open_lm.params.fields import UserError
from open_lm.tokenizer import load_tokenizer
from open_lm.tokens.options import InputOptions, Options, OutputOptions, RunOptions, TokenizerOptions
from open_lm.tokens.preprocess import preprocess

SEQ_LEN, BATCH = 16, 6
RECORDER = """
import os, sys
import numpy as np
from open_lm.data.loader import Loader
give = Loader.__iter__
def recorded(self):
    for batch in give(self):
        start = self.next_number - self._shape.global_batch_size
        np.save(f"{os.environ['RECORD']}/{start}-{os.environ.get('RANK', 0)}.npy", getattr(batch, "tokens", batch).numpy())
        yield batch
Loader.__iter__ = recorded
from open_lm.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Place:
    """A folder with texts, two corpora of shards made of them, a model, and runs in `logs`."""

    folder: Path

    def flags(self, name: str, *more: str) -> list[str]:
        flags = f"--model tiny.json --train-num-samples {10 * BATCH * SEQ_LEN} --epochs 2 --global-batch-size {BATCH} --precision fp32"
        return [*flags.split(), "--warmup", "1", "--workers", "0", "--logs-dir", "logs", "--name", name, "--multiple-data-passes", *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, tokenizer, shards with provenance in both formats of the preprocessor, and a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("inspect")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = {name: [f"{name} {i}: " + "naïve 漢字 and so on, " * (i % 4) for i in range(60)] for name in ("a", "b")}
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts["a"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, fmt in (("a", "npy"), ("b", "json.gz")):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[name])
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        output = OutputOptions(output_dir=str(folder / name), seq_len=SEQ_LEN, shard_size=20, format=fmt)
        inputs = InputOptions(input_files=(str(folder / f"{name}.jsonl"),))
        preprocess(Options(inputs, TokenizerOptions(tokenizer=str(folder / "tokenizer.json")), output, RunOptions(num_workers=1)))
    config = {"hidden_dim": 8, "n_layers": 1, "n_heads": 2, "seq_len": SEQ_LEN, "vocab_size": 300}
    (folder / "tiny.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The working folder of a run: names in its options are relative."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return Place(tmp_path / "work")


@pytest.fixture
def trained(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, np.ndarray]]:
    """Train in this process; gives the global batches that the loader gave, by number of their first row."""
    given: dict[int, np.ndarray] = {}
    give = Loader.__iter__

    def recorded(self: Loader) -> Iterator[Any]:
        for one in give(self):
            given[self.next_number - BATCH] = getattr(one, "tokens", one).numpy().copy()
            yield one

    def train(name: str, *more: str) -> dict[int, np.ndarray]:
        from open_lm.main import main

        given.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Loader, "__iter__", recorded)
            assert main(place.flags(name, *more)) == 0
        return dict(given)

    return train


A, B = "a/16-v1/0/*.tar", "b/16-v1/0/*.tar"
MIXES = {
    "one source": ["--train-data", A],
    "two sources": ["--train-data", A, B, "--train-data-mix-weights", "3", "1"],
    "with replacement": [
        "--train-data",
        f"{A}::{B.replace('b/', 'c/')}",
        B,
        "--dataset-resampled",
        "--train-data-upsampling-factors",
        "1::2",
        "1",
    ],
    "manifests": ["--dataset-manifest", "a/16-v1/0", "b/16-v1/0/manifest.jsonl", "--data-streams", "12"],
    "one by one": ["--train-data", "a/16-v1/0/manifest.jsonl", *(f"b/16-v1/0/shard-000000{i}.tar" for i in range(3))],
    "synthetic": ["--dataset-type", "synthetic"],
}


@pytest.mark.parametrize("mix", MIXES)
def test_inspection_shows_what_the_loader_gave(mix: str, place: Place, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if "c/16" in str(MIXES[mix]):
        shutil.copytree(place.folder / "a", place.folder / "c")
    given = trained("run", *MIXES[mix])
    monkeypatch.chdir("/")  # relative names are meant from where the run was started
    run = RunData(place.folder / "logs/run")
    assert sorted(given) == [BATCH * i for i in range(20)]
    for start, tokens in given.items():
        found = run.batch(start // BATCH + 1)
        assert found.first == start and found.tokens.dtype == np.int32
        assert np.array_equal(found.tokens, tokens)
        assert [row.number for row in found.rows] == list(range(start, start + BATCH))
        assert (SYNTHETIC in found.notes) == (mix == "synthetic")
        assert mix == "synthetic" or all(row.pieces for row in found.rows)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_inspection_shows_what_each_process_was_given(processes: int, place: Place, repo: Path) -> None:
    (place.folder / "recorder.py").write_text(RECORDER)
    (place.folder / "record").mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone", "recorder.py"]
    environment = {**os.environ, "PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1", "RECORD": str(place.folder / "record")}
    flags = place.flags("run", *MIXES["two sources"], "--workers", "1")
    done = subprocess.run([*torchrun, *flags], cwd=place.folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = RunData("logs/run")
    for step in range(1, 21):
        for rank in range(processes):
            given = np.load(place.folder / f"record/{BATCH * (step - 1)}-{rank}.npy")
            assert np.array_equal(run.batch(step, rank=rank, world_size=processes).tokens, given)


def test_the_documents_of_a_row_are_those_of_its_text(place: Place, trained: Any) -> None:
    trained("run", *MIXES["two sources"])
    tokenizer, run, files = load_tokenizer("tokenizer.json"), RunData("logs/run"), set()
    for step in range(1, 21):
        for row in run.batch(step).rows:
            assert row.pieces and row.pieces[0].begin == 0 and row.pieces[-1].end == len(row.tokens)
            for piece in row.pieces:
                line = Path(piece.file).read_bytes()[piece.at :].partition(b"\n")[0]
                document = [*tokenizer.encode(json.loads(line)["text"]), tokenizer.eot_id]
                assert row.tokens[piece.begin : piece.end].tolist() == document[piece.start : piece.stop]
                files.add(Path(piece.file).name)
            assert [p.begin for p in row.pieces[1:]] == [p.end for p in row.pieces[:-1]]
    assert files == {"a.jsonl", "b.jsonl"}


def test_a_row_is_where_it_is_said_to_lie(place: Place, trained: Any) -> None:
    import gzip
    import io
    import tarfile

    trained("run", *MIXES["two sources"])
    for row in RunData("logs/run").batch(3).rows:
        member, _, index = row.member.rstrip("]").partition("[")
        with tarfile.open(row.shard_name) as tar:
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
        stored = np.load(io.BytesIO(data))[int(index)] if index else json.loads(gzip.decompress(data))
        assert row.tokens.tolist() == list(stored)


def test_rows_of_longer_sequences_have_the_documents_of_their_part(place: Place, trained: Any) -> None:
    config = json.loads(Path("tiny.json").read_text())
    Path("tiny.json").write_text(json.dumps({**config, "seq_len": 8}))
    given = trained("run", *MIXES["one source"], "--train-num-samples", str(20 * BATCH * 8))
    tokenizer, parts = load_tokenizer("tokenizer.json"), set()
    for start in sorted(given)[:10]:
        found = batch("logs/run", start // BATCH + 1)
        assert np.array_equal(found.tokens, given[start])
        for row in found.rows:
            parts.add(row.begin)
            for piece in row.pieces or ():
                line = Path(piece.file).read_bytes()[piece.at :].partition(b"\n")[0]
                document = [*tokenizer.encode(json.loads(line)["text"]), tokenizer.eot_id]
                assert row.tokens[piece.begin : piece.end].tolist() == document[piece.start : piece.stop]
    assert parts == {0, 8}


def test_a_process_and_chosen_slots_are_parts_of_the_batch(place: Place, trained: Any) -> None:
    trained("run", *MIXES["one source"])
    whole = batch("logs/run", 4)
    assert np.array_equal(batch("logs/run", 4, rank=1, world_size=3).tokens, whole.tokens[1::3])
    assert [row.slot for row in batch("logs/run", 4, slots=[5, 2]).rows] == [2, 5]
    with pytest.raises(ValueError, match=r"--world-size 4: .* give one of 1, 2, 3, 6$"):
        batch("logs/run", 4, world_size=4)
    with pytest.raises(ValueError, match="--rank 3: give 0 to 2"):
        batch("logs/run", 4, rank=3, world_size=3)
    with pytest.raises(ValueError, match="--slots 2: process 1 of 3"):
        batch("logs/run", 4, rank=1, world_size=3, slots=[2])


@pytest.mark.parametrize("mix", ["two sources", "with replacement", "manifests"])
def test_an_order_file_holds_the_rows_of_its_steps(mix: str, place: Place, trained: Any) -> None:
    if "c/16" in str(MIXES[mix]):
        shutil.copytree(place.folder / "a", place.folder / "c")
    trained("run", *MIXES[mix])
    run = RunData("logs/run")
    write_order("order.npy", run.order(3, 8))
    order = read_order("order.npy")
    assert order.shape == (5, BATCH, 3) and order.dtype == np.uint32
    assert order.tolist() == [[[r.source, r.shard, r.row] for r in run.batch(step).rows] for step in range(3, 8)]
    assert first_difference(order, run.order(3, 8), 3) is None
    changed = np.array(order, dtype=np.uint64)
    changed[2, 4, 2] += 1
    found = first_difference(changed, run.order(3, 8), 3)
    assert found is not None and (found.step, found.slot, found.in_file[2]) == (5, 4, found.in_run[2] + 1)


def test_mistakes_are_told_in_one_line(place: Place, trained: Any) -> None:
    trained("run", *MIXES["one source"])
    Path("empty").mkdir()
    np.save("floats.npy", np.zeros((2, 2)))
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: batch("logs/none", 1), "--run logs/none: no such folder"),
        (lambda: batch("empty", 1), "--run empty: is no run folder"),
        (lambda: batch("logs/run", 0), "--step 0: steps are counted from 1"),
        (lambda: batch("logs/run", 21), "--step 21: beyond the end; logs/run has 20 steps"),
        (lambda: RunData("logs/run").order(5, 5), "--steps 5:5: names no step"),
        (lambda: read_order("floats.npy"), r"is float64 \[2, 2\]"),
        (lambda: read_order("none.npy"), "--check-order none.npy: can't be read"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_options_that_openlm_left_out_are_none(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--train-data .*No such file"):
        batch(shared / "data/golden/reference_run", 1)


def test_data_that_changed_or_went_are_not_shown(place: Place, trained: Any) -> None:
    trained("run", *MIXES["one source"])
    manifest = Path("a/16-v1/0/manifest.jsonl")
    lines = manifest.read_text().splitlines(keepends=True)
    last = json.loads(lines[-1])
    manifest.write_text("".join(lines[:-1]) + json.dumps({**last, "num_sequences": last["num_sequences"] - 1}) + "\n")
    with pytest.raises(ValueError, match=r"not what the run read there: source 0 had \d+ rows in \d shards, has \d+ in \d"):
        batch("logs/run", 1)
    shutil.rmtree("a")
    with pytest.raises(UserError, match=r"^logs/run: the data of the run can't be opened: --train-data .*a/16-v1/0/\*\.tar: no file"):
        batch("logs/run", 1)


def test_a_plan_has_one_name(place: Place, trained: Any) -> None:
    from open_lm.report.data import read_data
    from open_lm.report.data_table import lines

    trained("run", *MIXES["one source"])
    name = batch("logs/run", 1).order.rpartition("plan ")[2]
    assert len(name) == 12 and any(f"plan {name}" in line for line in lines(read_data("logs/run")))


def test_a_run_folder_has_no_say_over_the_cache_here(place: Place, trained: Any, s3: Any) -> None:
    given = trained("run", *MIXES["one source"], "--data-cache", "cache", "--data-cache-size", "1GB")
    assert not Path("cache").exists()
    plans = Path("logs/run/plans.json")
    plans.write_text(plans.read_text().replace('"cache"', '"/proc/none/cache"'))
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert np.array_equal(batch("../logs/run", 1).tokens, given[0])
    assert list(Path().iterdir()) == []


def test_commands_of_a_run_folder_run_only_where_the_caller_allows_it(place: Place, trained: Any) -> None:
    command = f"pipe:{sys.executable} -c \"import sys; open('ran', 'w'); sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())\""
    flags = "--train-data", f"{command} a/16-v1/0/shard-0000000.tar", "--dataset-manifest", "a/16-v1/0", "--allow-pipe"
    given = trained("run", *flags)
    Path("ran").unlink()
    with pytest.raises(UserError, match="runs a command on this machine; give --allow-pipe"):
        batch("logs/run", 1)
    assert not Path("ran").exists()
    assert np.array_equal(batch("logs/run", 1, allow_pipe=True).tokens, given[0])


def test_without_provenance_or_run_states_the_rest_is_shown_with_a_note(place: Place, trained: Any) -> None:
    given = trained("run", *MIXES["one source"])
    shutil.rmtree("a/16-v1/provenance")
    shutil.rmtree("logs/run/checkpoints")
    assert "no run state" not in str(batch("logs/run", 2).notes)  # plans.json is left
    Path("logs/run/plans.json").unlink()
    found = batch("logs/run", 2)
    assert np.array_equal(found.tokens, given[BATCH])
    assert [row.pieces for row in found.rows] == [None] * BATCH
    assert [note[:24] for note in found.notes] == ["no run state is left, so", *["no provenance beside the"] * (len(found.notes) - 1)]


def test_without_params_txt_a_run_state_is_enough(place: Place, trained: Any) -> None:
    given = trained("run", *MIXES["two sources"])
    Path("logs/run/params.txt").unlink()
    assert np.array_equal(batch("logs/run", 13).tokens, given[12 * BATCH])


def test_a_run_that_changed_batch_and_data_is_shown_as_it_was_at_each_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[np.ndarray] = []
    give = Loader.__iter__

    def recorded(self: Loader) -> Iterator[Any]:
        for one in give(self):
            given.append(one.tokens.numpy().copy())
            yield one

    def train(*more: str) -> None:
        from open_lm.main import main

        with monkeypatch.context() as patch:
            patch.setattr(Loader, "__iter__", recorded)
            assert main(place.flags("run", *more)) == 0

    def cut(step: int) -> None:
        """As if the run had been killed after a step, with nothing but its last run state left."""
        for path in Path("logs/run/checkpoints").iterdir():
            if path.name != f"step_{step}":
                path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)
        del given[step:]

    save = ("--save-every-steps", "1")
    train(*MIXES["one source"], *save)
    cut(4)
    train(*MIXES["one source"], *save, "--resume", "latest", "--global-batch-size", "12")
    cut(7)
    more = ("--resume", "latest", "--global-batch-size", "18", "--new-data-plan", "--seed", "3")
    train(*MIXES["two sources"], *save, *more)
    last = len(given)
    assert [len(tokens) for tokens in given] == [6] * 4 + [12] * 3 + [18] * (last - 7) and last == 10  # 120 = 24 + 36 + 3 x 18 + 6
    for path in Path("logs/run/checkpoints").glob("step_*"):  # of the older plans and batches nothing else is left
        if path.name != f"step_{last}":
            shutil.rmtree(path)

    def shown() -> None:
        run = RunData("logs/run")
        for step, tokens in enumerate(given, 1):
            assert np.array_equal(run.batch(step).tokens, tokens)
        for first, end in ((1, 5), (5, 8), (8, last + 1)):
            rows = [[[r.source, r.shard, r.row] for r in run.batch(step).rows] for step in range(first, end)]
            assert run.order(first, end).tolist() == rows
        with pytest.raises(ValueError, match="--steps 3:6: the global batch size changes at step 5"):
            run.order(3, 6)

    shown()
    kept = Path("logs/run/plans.json").read_text()
    Path("logs/run/plans.json").unlink()
    shown()
    Path("logs/run/plans.json").write_text(kept)
    shutil.rmtree("logs/run/checkpoints")
    Path("logs/run/params.txt").write_text("vocab_size: 300\n")
    shown()


def test_steps_of_a_run_of_version_0_2_are_counted_by_its_run_states(place: Place, trained: Any) -> None:
    trained("run", *MIXES["one source"])
    Path("logs/run/plans.json").unlink()
    checkpoints = Path("logs/run/checkpoints")
    for path, values in ((checkpoints / "step_10", {}), (checkpoints / "step_20", {"global_batch_size": 12, "sequences": 60 + 120})):
        state = json.loads((path / "state.json").read_text())
        del state["plans"], state["batches"]
        (path / "state.json").write_text(json.dumps({**state, **values}))
    history = read_history("logs/run")
    assert [history.span(step) for step in (1, 10, 11, 20)] == [(0, 6), (54, 6), (60, 12), (168, 12)]
    shutil.rmtree(checkpoints / "step_10")
    with pytest.raises(ValueError, match="--step 5: the global batch size changed between steps 0 and 20"):
        read_history("logs/run").span(5)


def test_the_page_shows_places_text_with_borders_and_documents(place: Place, trained: Any) -> None:
    trained("run", *MIXES["one source"])
    found = batch("logs/run", 2, slots=[1])
    lines = list(page(found, Shown(ids=3, text=True, sources=True)))
    row = found.rows[0]
    assert row.pieces and lines[0].startswith("logs/run, step 2: rows 6 to 11 of the run, 17 tokens each")
    assert f"  shard {row.shard}: {row.shard_name}" in lines
    assert f"    1. tokens 0 to {row.pieces[0].end - 1}: {row.pieces[0].file}, byte {row.pieces[0].at}, its tokens " in "\n".join(lines)
    assert lines[-1].split() == [str(t) for t in row.tokens[:3]]
    shown = [line.removeprefix("    │ ") for line in lines if line.startswith("    │")]
    assert "".join(shown) == "".join(found.tokenizer.decode(row.tokens[p.begin : p.end]) for p in row.pieces)  # type: ignore[union-attr]


def test_borders_without_provenance_are_the_ends_of_text(place: Place, trained: Any) -> None:
    import dataclasses

    trained("run", *MIXES["one source"])
    for row in batch("logs/run", 2).rows:
        assert borders(dataclasses.replace(row, pieces=None), 0) == borders(row, 0)


@pytest.mark.slow
def test_the_command_shows_writes_and_checks(place: Place, trained: Any, repo: Path) -> None:
    trained("run", *MIXES["one source"])
    trained("other", *MIXES["one source"], "--seed", "1")

    def command(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, repo / "scripts/inspect_batch.py", *flags], capture_output=True, text=True)

    shown = command("--run", "logs/run", "--step", "5", "--rank", "1", "--world-size", "2", "--text", "--sources")
    assert shown.returncode == 0, shown.stderr
    assert [line.split(",")[0] for line in shown.stdout.splitlines() if line.startswith("slot")] == ["slot 1", "slot 3", "slot 5"]
    assert "a.jsonl, byte" in shown.stdout and "naïve" in shown.stdout
    assert command("--run", "logs/run", "--order-file", "o.npy", "--steps", "1:11").returncode == 0
    same, other = command("--run", "logs/run", "--check-order", "o.npy"), command("--run", "logs/other", "--check-order", "o.npy")
    assert (same.returncode, other.returncode) == (0, 1)
    assert "the first difference is in step 1, slot" in other.stdout
    wrong = command("--step", "5", "--order-file", "o.npy")
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[0].startswith("--run: missing")


def test_a_run_over_s3_is_shown_with_its_documents(place: Place, trained: Any, s3: Any) -> None:
    for path in sorted(place.folder.glob("a/**/*")):
        if path.is_file():
            s3.put(str(path.relative_to(place.folder)), path.read_bytes())
    given = trained("remote", "--train-data", s3.url("a/16-v1/0/*.tar"))
    found = batch("logs/remote", 7)
    assert np.array_equal(found.tokens, given[found.first])
    assert all(row.pieces for row in found.rows)


def test_a_run_folder_over_s3_is_inspected_without_its_checkpoints(place: Place, trained: Any, s3: Any, faults: Any) -> None:
    given = trained("run", *MIXES["one source"])
    for path in sorted(Path("logs/run").glob("**/*")):
        if path.is_file():
            s3.put(str(path), path.read_bytes())
    faults.requests.clear()
    assert np.array_equal(batch(s3.url("logs/run"), 3).tokens, given[2 * BATCH])
    assert not any(
        ".pt" in request or ".distcp" in request for request in faults.requests if request.startswith("GET") and "list-type" not in request
    )
    with pytest.raises(ValueError, match="--run s3://.*/logs/none: is no run folder"):
        batch(s3.url("logs/none"), 1)
