"""Benchmark tasks from documents: real lines, the right one marked, the layout that the scorer reads."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from open_lm.evaluation.icl import build_prompts, read_rows
from open_lm.evaluation.tasks import read_task_file
from open_lm.tokens.tools.tasks_from_text import lines_before, split_lines, write_tasks
from open_lm.tokens.tools.word_statistics import WordStatistics, pieces


def module(number: int) -> str:
    """Source code with its own names, in the idioms of all."""
    rng = random.Random(number)
    noun, other = (f"{rng.choice(['file', 'user', 'task', 'node', 'page'])}_{rng.randrange(100)}" for _ in range(2))
    parts = [f'"""Module {number}."""', "import os", "import sys", ""]
    for i in range(6):
        parts += [
            f"def {noun}_{i}(self, {other}=None):",
            f"    if {other} is not None:",
            f"        self.{noun} = {other} + {rng.randrange(1000)}",
            f"    for {noun} in range(len({other})):",
            f"        count_{i} += 1",
            f"        print('{noun} of {other}', {rng.randrange(9999)})",
            f"    return self.{noun}",
            "",
        ]
    return "\n".join(parts) + "\n"


TEXTS = [module(number) for number in range(12)]


def rows_of(folder: Path, label: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{label}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    written = write_tasks(TEXTS, folder, questions=40)
    assert written.questions == {label: len(rows_of(folder, label)) for label in ("next_line", "finish_line")}
    assert min(written.questions.values()) >= 10
    return folder


def test_the_right_choice_is_the_line_that_follows_and_the_others_are_lines_of_other_documents(tasks: Path) -> None:
    lines = {line for document in split_lines(TEXTS) for line in document}
    for row in rows_of(tasks, "next_line"):
        assert len(row["choices"]) == 4 == len(set(row["choices"]))
        homes = [number for number, text in enumerate(TEXTS) if row["query"] + row["choices"][row["gold"]] in text]
        assert homes
        for i, choice in enumerate(row["choices"]):
            assert choice[0] == "\n" and choice[1:] in lines
            if i != row["gold"]:
                assert all(choice[1:].strip() not in [line.strip() for line in TEXTS[home].split("\n")] for home in homes)


def test_the_place_of_the_right_choice_tells_nothing(tasks: Path) -> None:
    gold = [row["gold"] for row in rows_of(tasks, "next_line")]
    assert set(gold) == {0, 1, 2, 3}


def test_the_choices_have_similar_lengths(tasks: Path) -> None:
    for row in rows_of(tasks, "next_line"):
        lengths = [len(choice.strip()) for choice in row["choices"]]
        right = lengths[row["gold"]]
        assert all(abs(length - right) <= max(2, right // 10) for length in lengths)


def test_a_continuation_is_the_rest_of_the_line_behind_one_space(tasks: Path) -> None:
    rows = rows_of(tasks, "finish_line")
    for row in rows:
        assert row["continuation"] == row["continuation"].strip() and " " not in row["continuation"]
        assert any(f"{row['context']} {row['continuation']}\n" in text for text in TEXTS)
    endings = [(row["context"].split()[-1], row["continuation"]) for row in rows]
    assert ("not", "None:") in endings
    assert max(map(endings.count, endings)) <= 10


def test_contexts_are_short(tasks: Path) -> None:
    assert all(len(row["query"]) <= 256 for row in rows_of(tasks, "next_line"))
    assert all(len(row["context"]) <= 256 + 80 for row in rows_of(tasks, "finish_line"))


def test_the_scorer_reads_them_and_rebuilds_the_text(tasks: Path) -> None:
    file = read_task_file(str(tasks / "tasks.yaml"))
    assert [(task.name, task.icl_task_type) for task in file.tasks] == [
        ("next_line/0-shot", "multiple_choice"), ("finish_line/0-shot", "language_modeling"),
    ]  # fmt: skip
    for task in file.tasks:
        rows = read_rows(task)
        prompt, row = build_prompts(task, rows)[0], rows[0]
        assert prompt.contexts[0] == row["query" if "query" in row else "context"].rstrip()


def test_the_yaml_is_llm_foundrys(tasks: Path) -> None:
    entries = yaml.safe_load((tasks / "tasks.yaml").read_text())["icl_tasks"]
    assert all(entry["num_fewshot"] == [0] and entry["dataset_uri"] == f"{entry['label']}.jsonl" for entry in entries)
    assert [entry["continuation_delimiter"] for entry in entries] == ["", " "]


def test_texts_number_and_seed_decide_everything(tasks: Path, tmp_path: Path) -> None:
    names = ("next_line.jsonl", "finish_line.jsonl", "tasks.yaml")
    write_tasks(TEXTS, tmp_path / "same", questions=40)
    assert all((tasks / name).read_bytes() == (tmp_path / "same" / name).read_bytes() for name in names)
    write_tasks(TEXTS, tmp_path / "other", questions=40, seed=1)
    assert all((tasks / name).read_bytes() != (tmp_path / "other" / name).read_bytes() for name in names[:2])


def test_what_can_not_be_is_said_in_one_line(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--output-dir .*: tasks.yaml exists already; .*--overwrite"):
        write_tasks(TEXTS, tasks)
    with pytest.raises(ValueError, match="--questions 0"):
        write_tasks(TEXTS, tmp_path / "new", questions=0)
    with pytest.raises(ValueError, match="no question of next_line comes from 1 document;"):
        write_tasks(TEXTS[:1], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_lines_before_a_line_begin_with_text() -> None:
    lines = ["", "", "a", "", "b", "c" * 300, "d", "e"]
    assert lines_before(lines, 5) == ["a", "", "b"]
    assert lines_before(lines, 7) == []
    assert lines_before(lines, 0) == []


def test_statistics_leave_the_document_in_question_out() -> None:
    documents = [["x = alpha beta"] * 9, ["y = alpha gamma"], ["z = alpha gamma"], ["w = alpha gamma"]]
    statistics = WordStatistics(documents)
    assert statistics.is_usual(["=", "alpha", "gamma"], 0, 3)
    assert not statistics.is_usual(["=", "alpha", "beta"], 0, 1)
    assert not statistics.is_usual(["=", "alpha", "gamma"], 1, 3)
    assert not statistics.is_usual(["never", "seen"], 0, 1)
    known, unknown = (statistics.log_probability("", line, 1) for line in ("z = alpha beta", "q = omega beta"))
    assert known > unknown
    assert statistics.log_probability("", "x = alpha beta", 0) < statistics.log_probability("", "x = alpha beta", 1)


def test_pieces_are_words_signs_and_the_indentation() -> None:
    assert pieces("    self.x += 1") == ["\n    ", "self", ".", "x", "+", "=", "1"]


@pytest.mark.slow
def test_the_command_writes_tasks(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    command = [sys.executable, repo / "datapreprocess/make_tasks.py", "--input-files", "held.jsonl", "--output-dir", "tasks"]
    done = subprocess.run([*command, "--questions", "10"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "tasks/tasks.yaml: next_line 10, finish_line 10 questions\n"), done.stderr
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
