"""eval/compare.py: results of several files side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from open_lm.evaluation.compare import run_compare
from open_lm.evaluation.result import Result
from open_lm.evaluation.table import write_results
from open_lm.params.fields import UserError


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_results({"r/one.pt": {"copa/0-shot": Result(0.5, 101, 1.0)}}, "a.json")
    write_results({"r/two.pt": {"copa/0-shot": Result(0.8, 101, 1.0), "piqa/0-shot": Result(1.0, 10, 1.0)}}, "b.json")


def test_two_files_stand_side_by_side_with_their_difference(capsys: pytest.CaptureFixture[str]) -> None:
    run_compare(["a.json", "b.json", "--out", "both.json", "both.csv"])
    out = capsys.readouterr().out
    assert [cell.strip() for cell in out.splitlines()[0].split("|")[3:5]] == ["one.pt", "two.pt"]
    # 0.3 over sqrt(0.25 / 100 + 0.16 / 100)
    assert "two.pt minus one.pt\ncopa/0-shot: +0.3000 (+4.7 standard errors)\n" in out
    assert list(json.loads(Path("both.json").read_text())) == ["r/one.pt", "r/two.pt"] and Path("both.csv").is_file()


def test_the_same_checkpoint_in_two_files_keeps_both_columns(capsys: pytest.CaptureFixture[str]) -> None:
    write_results({"r/one.pt": {"copa/0-shot": Result(0.6, 101, 1.0)}}, "c.json")
    run_compare(["a.json", "c.json", "--reference", "OpenLM-1B"])
    header = capsys.readouterr().out.splitlines()[0]
    assert "a.json: r/one.pt" in header and "c.json: r/one.pt" in header and "OpenLM-1B" in header


def test_all_problems_come_together() -> None:
    with pytest.raises(UserError) as error:
        run_compare(["a.json", "gone.json", "--reference", "x", "--out", "y.doc"])
    assert [line.split(":")[0] for line in error.value.problems] == ["--reference x", "--out y.doc", "gone.json"]
    with pytest.raises(UserError, match=r"give results\.json files"):
        run_compare([])
