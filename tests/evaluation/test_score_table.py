"""The table of results: Markdown, CSV, JSON, PNG; means, errors and published columns."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from open_lm.evaluation.published import AVERAGES, PUBLISHED, ROWS, reference
from open_lm.evaluation.result import Result
from open_lm.evaluation.table import columns_of, markdown_table, mean_of, mean_rows, read_results, short_names, write_results
from open_lm.evaluation.table_files import write_table

RESULTS = {
    "runs/a/epoch_1.pt": {"copa/0-shot": Result(0.5, 100, 1.23456), "arc/2-shot": Result(0.25, 40, 2.0)},
    "runs/b/epoch_1.pt": {"copa/0-shot": Result(0.75, 100, 1.0), "arc/2-shot": Result(0.375, 40, 2.0)},
}


def cells_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")]


def test_checkpoints_stand_side_by_side_with_errors_and_means() -> None:
    rows = cells_of(markdown_table(RESULTS))
    assert rows[0] == ["task", "questions", "a/epoch_1.pt", "b/epoch_1.pt"]
    assert set(rows[1][0]) == {"-"} and rows[1][2].endswith(":")
    assert rows[2] == ["copa/0-shot", "100", "0.5000 ± 0.0503", "0.7500 ± 0.0435"]
    assert rows[3] == ["arc/2-shot", "40", "0.2500 ± 0.0693", "0.3750 ± 0.0775"]
    error = math.hypot(math.sqrt(0.25 / 99), math.sqrt(0.1875 / 39)) / 2
    assert rows[4][:3] == ["**mean of 2**", "", f"**0.3750 ± {error:.4f}**"] and len(rows) == 5


def test_the_mean_is_over_the_rows_that_all_columns_have() -> None:
    more = {**RESULTS["runs/a/epoch_1.pt"], "piqa/0-shot": Result(1.0, 10, 1.0)}
    columns = columns_of({"a": more, "b": RESULTS["runs/b/epoch_1.pt"]})
    assert mean_rows(columns) == ["copa/0-shot", "arc/2-shot"]
    rows = cells_of(markdown_table({"a": more, "b": RESULTS["runs/b/epoch_1.pt"]}))
    assert rows[4][0] == "piqa/0-shot" and rows[4][3] == "" and rows[5][0] == "**mean of 2**"


def test_a_task_with_categories_is_one_row_the_plain_mean_of_them() -> None:
    parts = {"mmlu/5-shot/law": Result(0.5, 10, 1.0), "mmlu/5-shot/art": Result(0.2, 90, 1.0), "copa/0-shot": Result(1.0, 4, 1.0)}
    rows = cells_of(markdown_table({"a": parts}))
    error = math.hypot(math.sqrt(0.25 / 9), math.sqrt(0.16 / 89)) / 2
    assert rows[2] == ["mmlu/5-shot", "100", f"0.3500 ± {error:.4f}"] and rows[3][0] == "copa/0-shot" and len(rows) == 5


def test_published_columns_have_the_averages_that_were_published() -> None:
    scored = {name: Result(0.5, 100, 1.0) for name in (*ROWS, "mmlu/5-shot", "triviaqa/0-shot")}
    columns = columns_of({"ours": scored}, PUBLISHED)
    rows = mean_rows(columns)
    assert set(rows) == set(ROWS)  # MMLU with 5 examples and TriviaQA are not in the averages
    for column in columns[1:]:
        assert round(mean_of(column, rows).accuracy, 2) == AVERAGES[column.name]
    table = cells_of(markdown_table({"ours": scored}, {"OpenLM-7B": reference("openlm-7b")}))
    assert ["mmlu/5-shot", "100", "0.5000 ± 0.0503", "0.34"] in table and ["triviaqa/0-shot", "100", "0.5000 ± 0.0503", ""] in table
    with pytest.raises(ValueError, match="--reference GPT-5: .*MPT-7B"):
        reference("GPT-5")


def test_the_mean_takes_each_label_once_at_the_first_row_that_all_have() -> None:
    ours = {name: Result(0.5, 100, 1.0) for name in ("mmlu/5-shot", "mmlu/0-shot", "copa/0-shot")}
    assert mean_rows(columns_of({"a": ours}, {"OpenLM-1B": PUBLISHED["OpenLM-1B"]})) == ["mmlu/0-shot", "copa/0-shot"]
    assert mean_rows(columns_of({"a": ours})) == ["mmlu/5-shot", "copa/0-shot"]
    metrics = {name: Result(0.5, 100, 1.0) for name in ("hellaswag/0-shot", "hellaswag:acc_norm/0-shot", "copa/0-shot")}
    assert mean_rows(columns_of({"a": metrics})) == ["hellaswag/0-shot", "copa/0-shot"]


def test_examples_before_the_questions_make_another_row_than_the_published_one() -> None:
    table = cells_of(markdown_table({"ours": {"copa/5-shot": Result(0.5, 100, 1.0)}}, {"MPT-7B": reference("MPT-7B")}))
    assert table[2] == ["copa/5-shot", "100", "0.5000 ± 0.0503", ""]


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["x/epoch_1.pt", "x/epoch_2.pt"]) == ["epoch_1.pt", "epoch_2.pt"]
    assert short_names(["a/r/1.pt", "b/r/1.pt"]) == ["a/r/1.pt", "b/r/1.pt"]
    assert short_names(["a/1.pt", "1.pt"]) == ["a/1.pt", "1.pt"]


def test_the_json_has_the_promised_layout_and_is_read_back(tmp_path: Path) -> None:
    write_results(RESULTS, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert list(content) == list(RESULTS)
    stderr = math.sqrt(0.25 / 99)
    expected = {"accuracy": 0.5, "questions": 100, "seconds": 1.235, "stderr": pytest.approx(stderr)}
    assert content["runs/a/epoch_1.pt"]["copa/0-shot"] == expected
    assert read_results(str(tmp_path / "results.json"))["runs/b/epoch_1.pt"] == RESULTS["runs/b/epoch_1.pt"]
    (tmp_path / "other.json").write_text('{"a": {"b": 1}}')
    with pytest.raises(ValueError, match=r"other\.json: not results"):
        read_results(str(tmp_path / "other.json"))


def test_the_csv_has_every_category_and_full_numbers(tmp_path: Path) -> None:
    parts = {"mmlu/5-shot/law": Result(1 / 3, 9, 1.0), "mmlu/5-shot/art": Result(0.5, 9, 1.0)}
    write_table({"a": parts}, str(tmp_path / "t.csv"), {"LLaMA-7B": reference("LLaMA-7B")})
    rows = list(csv.reader((tmp_path / "t.csv").open()))
    assert rows[0] == ["task", "questions", "a", "a stderr", "LLaMA-7B", "LLaMA-7B stderr"]
    assert [row[0] for row in rows[1:]] == ["mmlu/5-shot", "mmlu/5-shot/law", "mmlu/5-shot/art", "mean of 1"]
    assert float(rows[2][2]) == 1 / 3 and rows[1][4:] == ["0.34", ""] and rows[2][4:] == ["", ""]


def test_the_picture_is_a_png_and_other_endings_are_refused(tmp_path: Path) -> None:
    write_table(RESULTS, str(tmp_path / "t.png"), {"MPT-7B": reference("MPT-7B")})
    assert (tmp_path / "t.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    write_table(RESULTS, str(tmp_path / "t.md"))
    assert (tmp_path / "t.md").read_text() == markdown_table(RESULTS) + "\n"
    with pytest.raises(ValueError, match=r"--out t\.xlsx: .*\.csv"):
        write_table(RESULTS, "t.xlsx")
