"""The Markdown table and the JSON of results."""

from __future__ import annotations

import json
from pathlib import Path

from open_lm.evaluation.benchmark import Result
from open_lm.evaluation.table import markdown_table, short_names, write_results

RESULTS = {
    "runs/a/epoch_1.pt": {"copa/0-shot": Result(0.5, 100, 1.23456), "arc/2-shot": Result(0.25, 40, 2.0)},
    "runs/b/epoch_1.pt": {"copa/0-shot": Result(0.75, 100, 1.0), "arc/2-shot": Result(0.375, 40, 2.0)},
}


def test_checkpoints_stand_side_by_side_with_their_means() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown_table(RESULTS).split("\n")]
    assert rows[0] == ["task", "questions", "a/epoch_1.pt", "b/epoch_1.pt"]
    assert set(rows[1][0]) == {"-"} and rows[1][2].endswith(":")
    assert rows[2:] == [
        ["copa/0-shot", "100", "0.5000", "0.7500"],
        ["arc/2-shot", "40", "0.2500", "0.3750"],
        ["**mean**", "", "**0.3750**", "**0.5625**"],
    ]


def test_a_checkpoint_that_lacks_a_task_has_no_mean() -> None:
    table = markdown_table({**RESULTS, "c.pt": {"copa/0-shot": Result(1.0, 100, 1.0)}})
    assert [cell.strip() for cell in table.split("\n")[-1].split("|")][-2] == ""


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["x/epoch_1.pt", "x/epoch_2.pt"]) == ["epoch_1.pt", "epoch_2.pt"]
    assert short_names(["a/r/1.pt", "b/r/1.pt"]) == ["a/r/1.pt", "b/r/1.pt"]
    assert short_names(["a/1.pt", "1.pt"]) == ["a/1.pt", "1.pt"]


def test_the_json_has_the_promised_layout(tmp_path: Path) -> None:
    write_results(RESULTS, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert list(content) == list(RESULTS)
    assert content["runs/a/epoch_1.pt"]["copa/0-shot"] == {"accuracy": 0.5, "questions": 100, "seconds": 1.235}
