"""The report of a run's data says what the loader gave and the plan says, from the run folder's text files alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_lm.data.loader import Loader
from open_lm.report import Report, read_data, read_run, write_report
from open_lm.report.data import DataView
from open_lm.report.data_pictures import panels_of
from open_lm.report.data_table import lines, plan_rows, time_table
from open_lm.shards.manifest import write_manifest
from open_lm.shards.tar import write_shard

SEQ_LEN = 8
TWO = ("--train-data", "web/*.tar", "code/*.tar", "--train-data-mix-weights", "3", "1")
Train = Callable[..., list[tuple[int, list[int]]]]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Run in `tmp_path`; gives the position in the plan and the sources of each batch that training read."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    for name, rows, shards in (("web", 300, 3), ("code", 50, 2)):
        tokens = np.random.default_rng(0).integers(0, 50, (rows, SEQ_LEN + 1)).astype(np.uint16)
        entries = [write_shard(tmp_path / f"{name}/shard-{i}.tar", "npy", part) for i, part in enumerate(np.array_split(tokens, shards))]
        write_manifest(tmp_path / name / "manifest.jsonl", entries)
    config = {"hidden_dim": 8, "n_layers": 1, "n_heads": 2, "seq_len": SEQ_LEN, "vocab_size": 50}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    give = Loader.__iter__
    found: list[tuple[int, list[int]]] = []

    def recorded(self: Loader) -> Iterator[Any]:
        for batch in give(self):
            sources = [0] * len(batch.tokens) if batch.sources is None else batch.sources.tolist()
            found.append((self.next_number - len(sources), sources))
            yield batch

    def run(*more: str) -> list[tuple[int, list[int]]]:
        from open_lm.main import main

        flags = f"--model tiny.json --train-num-samples {400 * SEQ_LEN} --epochs 1 --global-batch-size 8 --precision fp32 --workers 0"
        flags += " --warmup 1 --logs-dir logs --name run --multiple-data-passes --log-every-n-steps 5 --save-every-steps 10"
        found.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Loader, "__iter__", recorded)
            assert main([*flags.split(), *more]) == 0
        return list(found)

    return run


def text(view: DataView) -> str:
    return "\n".join(lines(view))


def test_shares_passes_and_losses_are_those_of_the_rows_that_were_read(train: Train) -> None:
    read = train(*TWO)
    view = read_data("logs/run")
    assert (view.last_step, view.total_steps, view.source_names) == (50, 50, ("web", "code"))
    (plan,) = view.plans
    counts = [sum(Counter(sources)[i] for _, sources in read) for i in (0, 1)]
    assert plan.rows_of(400) == tuple(counts) and plan.passes_of(400) == (counts[0] / 300, counts[1] / 50)
    rows = np.array([source for _, sources in read for source in sources])
    at = int(np.flatnonzero(rows == 1)[50])  # the first row of the second pass over the second source
    assert plan.begins(1, 9)[0] == at and view.step_of(at) == at // 8 + 1
    assert plan_rows(view, plan)[1][:2] == ("code", "2") and plan_rows(view, plan)[1][-1].split(", ")[0] == str(at // 8 + 1)
    for i, step in enumerate(view.steps):
        here = rows[40 * i : 40 * (i + 1)]
        assert step.targets == {"web": SEQ_LEN * int((here == 0).sum()), "code": SEQ_LEN * int((here == 1).sum())}
    head, table = time_table(view)
    assert head == ["steps", "web planned", "web trained on", "web loss", "code planned", "code trained on", "code loss", "wait"]
    assert len(table) == 10 and table[0][1] == "75.0 %" and table[0][2] == f"{100 * (rows[:40] == 0).mean():.1f} %"
    metrics = [json.loads(line) for line in Path("logs/run/metrics.jsonl").read_text().splitlines()]
    assert table[3][3] == f"{metrics[3]['loss/web']:.3f}"
    assert all(0 <= m["data_wait_seconds"] <= m["seconds"] for m in metrics)
    assert sum(m["targets/web"] + m["targets/code"] for m in metrics) == 400 * SEQ_LEN


def test_changes_of_batch_and_plan_are_shown_from_their_steps_on(train: Train) -> None:
    train(*TWO)
    for step in (30, 40, 50):
        shutil.rmtree(f"logs/run/checkpoints/step_{step}")
    read = train("--train-data", "code/*.tar", "--resume", "latest", "--new-data-plan", "--global-batch-size", "16")
    assert read[0][0] == 0 and len(read) == 15
    for kept in ("plans.json", "run states"):
        view = read_data("logs/run")
        assert [(b.step, b.row, b.size) for b in view.batches] == [(0, 0, 8), (20, 160, 16)]
        assert [(p.first_row, p.stop_row, p.first_step) for p in view.plans] == [(0, 160, 1), (160, 400, 21)], kept
        assert view.row_after(35) == 400 and view.tokens_after(35) == 400 * SEQ_LEN == view.steps[-1].tokens
        assert view.plans[1].passes_of(400) == (240 / 50,)
        assert view.step_of(159) == 20 and view.step_of(160) == 21 and view.step_of(176) == 22
        shown = text(view)
        assert "batches: 8 rows of 8 tokens from step 1, 16 rows of 8 tokens from step 21" in shown
        assert "from step 21 (row 160) on: in passes without replacement, 8 streams" in shown
        Path("logs/run/plans.json").unlink(missing_ok=True)
    shutil.rmtree("logs/run/checkpoints")
    view = read_data("logs/run")
    assert view.plans == () and "plan: unknown; neither plans.json nor a run state tells it" in text(view)


def test_a_run_that_is_going_or_was_killed_is_shown_as_far_as_it_came(train: Train, tmp_path: Path) -> None:
    train(*TWO)
    metrics = Path("logs/run/metrics.jsonl")
    whole = metrics.read_text().splitlines(keepends=True)
    shutil.rmtree("logs/run/checkpoints")
    metrics.write_text("".join(whole[:3]) + whole[3][:20])
    view = read_data("logs/run")
    assert view.last_step == 15 and "step 15 of 50" in text(view)
    assert view.plans[0].passes_of(view.row_after(15))[0] < 0.4 < view.plans[0].passes_of(400)[0]
    run = read_run("logs/run")
    assert write_report(Report([run]), tmp_path / "page.html")[-1].name == "page-data.png"
    metrics.unlink()  # before the first log line
    view = read_data("logs/run")
    assert view.last_step == 0 and "step 0 of 50" in text(view) and len(panels_of(view)) == 1
    with pytest.raises(ValueError, match="--run none: is no run folder"):
        read_data("none")


def test_one_source_and_synthetic_tokens_have_a_report_too(train: Train) -> None:
    train("--train-data", "code/*.tar")
    view = read_data("logs/run")
    assert time_table(view)[0] == ["steps", "wait"] and len(view.source_names) == 1
    assert view.bytes_used(50) == pytest.approx(8 * sum(p.stat().st_size for p in Path("code").glob("*.tar")))
    train("--dataset-type", "synthetic", "--overwrite")
    view = read_data("logs/run")
    assert "synthetic tokens" in text(view) and len(panels_of(view)) == 1
    train(*TWO, "--dataset-resampled", "--overwrite")
    assert "with replacement" in text(read_data("logs/run"))


def test_what_came_from_elsewhere_is_told_over_what_was_used(train: Train, s3: Any) -> None:
    for path in Path("web").iterdir():
        s3.put(f"web/{path.name}", path.read_bytes())
    train("--train-data", s3.url("web/*.tar"), "code/*.tar", "--train-data-mix-weights", "3", "1")
    shards = sum(p.stat().st_size for p in Path("web").glob("*.tar"))
    view = read_data("logs/run")
    assert view.sum_of("fetched") == shards  # one pass, and one process
    assert f"times the {view.bytes_used(50) / 1e3:.3g} kB that the rows read so far take" in text(view)
    for path in Path("logs/run").iterdir():
        if path.is_file():
            s3.put(f"logs/run/{path.name}", path.read_bytes())
    assert text(read_data(s3.url("logs/run"))) == text(view)


@pytest.mark.slow
def test_the_command_prints_the_tables_and_writes_the_page(train: Train, repo: Path) -> None:
    train(*TWO)

    def report(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, repo / "scripts/data_report.py", *flags], capture_output=True, text=True)

    done = report("--run", "logs/run", "--output", "out/page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["run", "  step 50 of 50, 3,200 tokens"]
    assert "<h2>Data</h2>" in Path("out/page.html").read_text() and Path("out/page-data.png").exists()
    wrong = report("--run", "nothing")
    assert wrong.returncode == 2 and wrong.stderr.startswith("--run nothing: is no run folder")
    assert report().stderr == "--run: missing; give a run folder, such as logs/NAME\n"
