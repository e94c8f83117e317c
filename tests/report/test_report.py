"""A report shows what the run folder says, and nothing from it unescaped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from open_lm.report import Report, read_run, read_scores, write_report
from open_lm.report.page import render_page, short_count
from open_lm.report.pictures import chance_of, half_interval, smoothed, tail, validation_names


def log_step(step: int, loss: float | None, tokens: int | None = None) -> dict:
    return {
        "step": step, "epoch": 0, "tokens": tokens or step * 100, "loss": loss, "lr": 1e-3, "grad_norm": 1.0,
        "tokens_per_second": 1000.0 + step, "data_wait_seconds": 0.0,
    }  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "logs" / "a <b> run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(log_step(s, 9 - s / 10)) + "\n" for s in (10, 20, 30)))
    (folder / "params.txt").write_text("lr: 0.003\nmodel: somewhere/model.json\nname: a <b> run\n")
    (folder / "out.log").write_text(
        "2026-01-01,00:00:00 | INFO | Model somewhere/model.json: 1,234,567 parameters\n"
        "2026-01-01,00:01:00 | INFO | Resumed from x/step_20: step 20, 200 sequences, 2000 tokens\n"
    )
    first = {"val_data": ["held"], "loss": 8.0, "train_tokens": 1000, "perplexity": 2981.0, "token_accuracy": 0.125}
    second = {"val_data": ["held"], "loss": 7.25, "train_tokens": 3000, "bits_per_byte": 1.5}
    (folder / "checkpoints" / "results.jsonl").write_text(json.dumps([first]) + "\n" + json.dumps([second]) + "\n")
    return folder


def test_a_run_folder_gives_its_steps_validations_model_and_resumes(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert [(s.step, s.tokens, s.loss) for s in run.steps] == [(10, 1000, 8.0), (20, 2000, 7.0), (30, 3000, 6.0)]
    assert run.parameters == 1_234_567
    assert run.resumed_at == (2000.0,)
    assert run.bad_lines == 0
    assert run.median_tokens_per_second() == 1020
    assert [v.loss for v in run.last_validations()] == [7.25]


def test_of_repeated_steps_the_last_one_counts_and_the_place_is_a_resume(run_folder: Path) -> None:
    (run_folder / "out.log").unlink()
    steps = [(10, 8.0), (20, 7.0), (30, 6.0), (20, 7.5), (30, 6.5)]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(log_step(*s)) + "\n" for s in steps))
    run = read_run(run_folder)
    assert [(s.step, s.loss) for s in run.steps] == [(10, 8.0), (20, 7.5), (30, 6.5)]
    assert run.resumed_at == (2000.0,)
    assert run.parameters is None


def test_a_half_written_line_is_counted_not_hidden(run_folder: Path, tmp_path: Path) -> None:
    with open(run_folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')
    run = read_run(run_folder)
    assert run.bad_lines == 1 and len(run.steps) == 3
    page = render_page(Report([run]), tmp_path / "page.html", {})
    assert "lines of its logs that are not readable and left out: 1." in page


def test_losses_that_are_not_numbers_leave_a_gap(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "metrics.jsonl").write_text(json.dumps(log_step(10, None)) + "\n" + json.dumps(log_step(20, float("nan"))) + "\n")
    run = read_run(run_folder)
    assert all(s.loss != s.loss for s in run.steps)
    assert "last training loss</td><td>–" in render_page(Report([run]), tmp_path / "page.html", {})


@pytest.mark.parametrize("make, message", [(False, "no such folder"), (True, "holds no metrics.jsonl")])
def test_a_folder_without_a_run_is_named(tmp_path: Path, make: bool, message: str) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(ValueError, match=f"--run .*nothing: {message}"):
        read_run(folder)


def test_scores_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    for content in ("not json", "[1]", '{"a": {"task": {"questions": 3}}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="not a file of scores"):
            read_scores(path)


def test_validations_are_named_by_their_set_and_their_averager(run_folder: Path) -> None:
    path = run_folder / "checkpoints/results.jsonl"

    def names(*results: tuple[str, str | None]) -> list[str]:
        found = [{"val_data": [data], "loss": 8.0, "train_tokens": 1000} | ({"averager": one} if one else {}) for data, one in results]
        path.write_text(json.dumps(found) + "\n")
        return [*validation_names(read_run(run_folder)).values()]

    assert names(("a/held.tar", None)) == ["validation"]
    assert names(("a/held.tar", None), ("a/held.tar", "ema_0.999_1")) == ["validation", "validation of ema_0.999_1"]
    several = [(f"a/{name}.tar", one) for name in ("books", "web") for one in (None, "poly_16_1")]
    assert names(*several) == [
        *("validation on books", "validation on books of poly_16_1", "validation on web", "validation on web of poly_16_1")
    ]


class Page(HTMLParser):
    """Tags, link targets and whether every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.targets += [value for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    task = {"accuracy": 0.5, "questions": 100, "seconds": 2.0}
    path.write_text(json.dumps({"x/epoch_1.pt": {"next_line/0-shot": task, "finish_line/0-shot": {**task, "accuracy": 0.0}}}))
    return path


def test_the_page_has_its_pictures_and_links_beside_it(run_folder: Path, scores: Path, tmp_path: Path) -> None:
    report = Report([read_run(run_folder)], read_scores(scores), {"next_line": 0.25}, samples="x = '</pre><script>'\n")
    files = write_report(report, tmp_path / "out" / "report.html")
    assert [f.name for f in files] == [
        "report.html", "report-loss.png", "report-learning-rate.png", "report-speed.png", "report-scores.png", "report-data.png",
    ]  # fmt: skip
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files[1:])
    text = files[0].read_text()
    page = Page(text)
    assert not page.open
    from urllib.parse import unquote

    assert all((files[0].parent / unquote(target)).exists() for target in page.targets)
    assert "../logs/a%20%3Cb%3E%20run/metrics.jsonl" in page.targets
    assert "<script>" not in text and "<b> run" not in text
    assert "x = &#x27;&lt;/pre&gt;&lt;script&gt;&#x27;" in text
    assert str(tmp_path) not in text


def test_the_page_says_the_numbers(run_folder: Path, scores: Path, tmp_path: Path) -> None:
    report = Report([read_run(run_folder)], read_scores(scores), {"next_line": 0.25})
    text = re.sub(r"\s*</?t[rdh]>\s*", "|", render_page(report, tmp_path / "report.html", {"scores": tmp_path / "scores.png"}))
    for row in (
        "|model||model.json|", "|parameters||1,234,567|", "|training tokens||3K|", "|last training loss||6.000|",
        "|validation loss||7.250|", "|tokens per second (median)||1,020|",
        "|held||1K||8.0000||2981.00||12.5 %||–|", "|held||3K||7.2500||–||–||1.5000|",
        "|next_line/0-shot||50.0 %||± 9.8||25 %||100||2.0||x/epoch_1.pt|", "|finish_line/0-shot||0.0 %||± 0.0||–||100|",
    ):  # fmt: skip
        assert row in text, row
    assert "was stopped and resumed, after 2K tokens" in text


def test_several_runs_share_the_pictures(run_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "logs" / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text("".join(json.dumps(log_step(s, 5 + (s % 7) / 10)) + "\n" for s in range(1, 400)))
    alone = write_report(Report([read_run(run_folder)]), tmp_path / "one.html")
    both = write_report(Report([read_run(run_folder), read_run(other)]), tmp_path / "two.html")
    assert [p.read_bytes() for p in alone[1:]] != [p.read_bytes() for p in both[1:]]
    assert "<h1>a &lt;b&gt; run, other</h1>" in both[0].read_text()


def test_the_same_run_gives_the_same_files(run_folder: Path, tmp_path: Path) -> None:
    files = write_report(Report([read_run(run_folder)]), tmp_path / "report.html")
    before = [f.read_bytes() for f in files]
    write_report(Report([read_run(run_folder)]), tmp_path / "report.html")
    assert [f.read_bytes() for f in files] == before


def test_smoothing_keeps_a_straight_line_and_leaves_nan_out() -> None:
    line = [float(i) for i in range(20)]
    assert smoothed(line, 5)[:18] == line[:18]
    assert smoothed([1.0, float("nan"), 3.0], 3)[1] == 2.0


def test_small_things() -> None:
    assert [short_count(n) for n in (0, 999, 1234, 3_280_000, 1.5e9, float("nan"))] == ["0", "999", "1.23K", "3.28M", "1.5B", "–"]
    assert half_interval(0.5, 100) == pytest.approx(0.098)
    assert half_interval(0.5, 0) == 0
    assert chance_of("copa/5-shot", {"copa": 0.5}) == 0.5
    assert chance_of("copa/5-shot", {"copa": 0.5, "copa/5-shot": 0.4}) == 0.4
    assert chance_of("arc/0-shot", {"copa": 0.5}) is None
    assert tail("a/b.pt") == "a/b.pt" and tail("x" * 100, 10) == "…" + "x" * 10


@pytest.mark.slow
def test_the_command_writes_a_page_and_names_what_is_wrong(repo: Path, run_folder: Path, scores: Path, tmp_path: Path) -> None:
    def report(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, repo / "scripts/report.py", *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
        )

    done = report("--run", run_folder, "--run", run_folder, "--scores", scores, "--chance", "next_line=0.25", "--output", "o/r.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "o/r.html" and (tmp_path / "o/r-loss.png").exists()
    wrong = report("--output", "x.html")
    assert (wrong.returncode, wrong.stderr) == (2, "--run: missing; give a run folder\n")
    wrong = report("--run", run_folder, "--output", "x.html", "--chance", "next_line")
    assert wrong.returncode == 2 and "--chance next_line: give label=share" in wrong.stderr
