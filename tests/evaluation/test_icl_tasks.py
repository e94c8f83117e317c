"""Task files: what is read, where data are found, what is refused and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from open_lm.evaluation.tasks import Task, TaskFile, parse_task_file, read_task_file
from open_lm.params.fields import UserError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with data.jsonl in it."""
    (tmp_path / "data.jsonl").write_text('{"context": "a", "continuation": "b"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entry(**changes: Any) -> dict[str, Any]:
    values = {"label": "words", "dataset_uri": "data.jsonl", "num_fewshot": [0], "icl_task_type": "language_modeling"}
    return {key: value for key, value in (values | changes).items() if value is not ...}


def parse(*entries: dict[str, Any], **top: Any) -> TaskFile:
    return parse_task_file({"icl_tasks": list(entries), **top}, "tasks.yaml")


def problem(*entries: dict[str, Any], **top: Any) -> str:
    with pytest.raises(UserError) as error:
        parse(*entries, **top)
    assert len(error.value.problems) == 1, error.value.problems
    return error.value.problems[0]


def test_each_number_of_examples_is_a_task_with_llm_foundrys_defaults(data: Path) -> None:
    first, second = parse(entry(num_fewshot=[0, 10])).tasks
    assert first == Task("words", "data.jsonl", "language_modeling", 0, " ", "\n", "", "", 1234, None)
    assert (first.name, second.name) == ("words/0-shot", "words/10-shot")


def test_a_label_and_other_text_stay_as_they_are_written(data: Path) -> None:
    keys = "dataset_uri: data.jsonl, num_fewshot: [0], icl_task_type: language_modeling, continuation_delimiter: off"
    (data / "tasks.yaml").write_text("icl_tasks:\n" + "".join(f"- {{label: {label}, {keys}}}\n" for label in ("yes", "007", "off", "true")))
    tasks = read_task_file("tasks.yaml").tasks
    assert [task.name for task in tasks] == ["yes/0-shot", "007/0-shot", "off/0-shot", "true/0-shot"]
    assert tasks[0].continuation_delimiter == "off"


def test_a_key_given_twice_is_refused_with_file_line_and_key(data: Path, shared: Path) -> None:
    case = shared / "data/cases/icl_tasks_twice.yaml"
    with pytest.raises(UserError) as error:
        read_task_file(str(case))
    words = "line 3: the key 'icl_tasks' is given twice, first in line 1; keep one of them"
    assert error.value.problems == [f"--eval-yaml {case}: {words}"]
    (data / "half.yaml").write_text('icl_tasks:\n- label: "\\ud800"\n')
    with pytest.raises(UserError, match=r"--eval-yaml half.yaml: line 2: has half a surrogate pair .* at character 10"):
        read_task_file("half.yaml")


def test_null_values_mean_defaults_and_a_lone_number_is_a_list(data: Path) -> None:
    (task,) = parse(entry(continuation_delimiter=None, num_fewshot=3)).tasks
    assert (task.continuation_delimiter, task.num_fewshot) == (" ", 3)


def test_given_values_are_kept(data: Path) -> None:
    given = {"continuation_delimiter": "\nAnswer: ", "example_delimiter": "\n\n", "prompt_string": "Quiz", "question_prelimiter": "Q: "}
    (task,) = parse(entry(fewshot_random_seed=7, max_seq_len=512, **given)).tasks
    assert all(getattr(task, key) == value for key, value in given.items())
    assert (task.fewshot_random_seed, task.max_seq_len) == (7, 512)


def test_llm_foundrys_keys_about_its_own_run_are_left_to_it(data: Path) -> None:
    file = parse(entry(batch_size=4, metric_names=["InContextLearningLMAccuracy"]), model={"name": "x"}, device_eval_batch_size=8, seed=1)
    assert (len(file.tasks), file.max_seq_len, file.precision) == (1, None, "fp32")


def test_length_and_precision_come_from_the_top_level(data: Path) -> None:
    file = parse(entry(), max_seq_len=1024, precision="amp_bf16")
    assert (file.max_seq_len, file.precision) == (1024, "amp_bfloat16")


def test_data_are_looked_for_in_the_working_folder_then_beside_the_yaml(data: Path) -> None:
    folder = data / "tasks"
    folder.mkdir()
    yaml = folder / "t.yaml"
    yaml.write_text("icl_tasks:\n- {label: words, dataset_uri: data.jsonl, num_fewshot: [0], icl_task_type: language_modeling}\n")
    (folder / "data.jsonl").touch()
    assert read_task_file(str(yaml)).tasks[0].dataset_uri == "data.jsonl"
    (data / "data.jsonl").unlink()
    assert read_task_file(str(yaml)).tasks[0].dataset_uri == str(folder / "data.jsonl")


def test_missing_data_are_named_with_the_task(data: Path) -> None:
    text = problem(entry(dataset_uri="gone.jsonl"))
    assert "tasks.yaml" in text and "words" in text and "gone.jsonl" in text


def test_all_problems_come_together(data: Path) -> None:
    with pytest.raises(UserError) as error:
        parse(entry(dataset_uri="gone.jsonl"), entry(label="other", num_fewshot=[-1]), precision="int8")
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"continuation_delimeter": "x"}, ("continuation_delimeter", "Did you mean continuation_delimiter?", "words")),
        ({"icl_task_type": "multiple_choise"}, ("multiple_choise", "Did you mean multiple_choice?")),
        ({"icl_task_type": "code_evaluation"}, ("code_evaluation", "words")),
        ({"icl_task_type": "question_answering", "generation_kwargs": {"num_beams": 2}}, ("generation_kwargs: num_beams", "words")),
        ({"prelimiter": 5}, ("prelimiter 5", "quotes")),
        ({"has_categories": "yes"}, ("has_categories", "true or false", "words")),
        ({"early_stopping_criteria": "stop"}, ("early_stopping_criteria", "words")),
        ({"early_stopping_criteria": ["("]}, ("early_stopping_criteria", "regular expression")),
        ({"prelimiter": "Q", "question_prelimiter": "Q"}, ("prelimiter", "one of them")),
        ({"dataset_uri": "hf://squad"}, ("hf://", "words")),
        ({"num_fewshot": ["ten"]}, ("num_fewshot", "ten")),
        ({"prompt_string": 5}, ("prompt_string", "5")),
        ({"max_seq_len": "long"}, ("max_seq_len", "long")),
        ({"label": ...}, ("task 1", "lacks label")),
        ({"metric_names": ["InContextLearningMCExpectedCalibrationError"]}, ("metric_names",)),
    ],
)
def test_wrong_entries_are_named(data: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    text = problem(entry(**changes))
    assert "\n" not in text and all(word in text for word in words), text


def test_the_keys_of_generated_answers_and_categories_are_kept_and_old_names_known(data: Path) -> None:
    given = {"cot_delimiter": "####", "do_normalization": False, "has_categories": True}
    old = {"icl_task_type": "question_answering", "metric_names": ["InContextLearningQAAccuracy"], "prelimiter": "Q: "}
    (task,) = parse(entry(early_stopping_criteria=["\n\n", "Q:"], **given, **old)).tasks
    assert all(getattr(task, key) == value for key, value in given.items())
    assert (task.icl_task_type, task.question_prelimiter) == ("generation_task_with_answers", "Q: ")
    assert task.early_stopping_criteria == ("\n\n", "Q:")


def test_two_tasks_of_one_name_are_refused(data: Path) -> None:
    assert "words/0-shot appears more than once" in problem(entry(), entry())


@pytest.mark.parametrize("content", [None, [], {"icl_task": []}, {"icl_tasks": {}}, {"icl_tasks": []}])
def test_a_file_without_tasks_is_refused(content: object) -> None:
    with pytest.raises(UserError, match=r"tasks\.yaml: must hold a list `icl_tasks:`"):
        parse_task_file(content, "tasks.yaml")


def test_unreadable_files_are_named_in_one_line(data: Path) -> None:
    (data / "bad.yaml").write_text("icl_tasks: [\n- {")
    for name in ("bad.yaml", "absent.yaml"):
        with pytest.raises(UserError, match=f"--eval-yaml {name}") as error:
            read_task_file(name)
        assert "\n" not in str(error.value)


def test_the_shipped_file_lists_the_readmes_tasks(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    shipped = repo / "eval/in_memory_hf_eval.yaml"
    for task in yaml.safe_load(shipped.read_text())["icl_tasks"]:
        path = tmp_path / task["dataset_uri"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    labels = {task.label for task in read_task_file(str(shipped)).tasks}
    assert labels == {"arc_easy", "arc_challenge", "boolq", "copa", "hellaswag", "lambada_openai", "piqa", "winogrande", "winograd"}
