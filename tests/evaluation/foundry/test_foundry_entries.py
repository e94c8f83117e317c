"""Task files as LLM Foundry's evaluators take them; the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from open_lm.evaluation.foundry.entries import parse_entries, read_entries
from open_lm.evaluation.published import PUBLISHED, ROWS
from open_lm.evaluation.tasks import parse_task_file, read_task_file
from open_lm.params.fields import UserError


def task(folder: Path, **more: object) -> dict[str, object]:
    (folder / "rows.jsonl").touch()
    base = {"label": "x", "dataset_uri": str(folder / "rows.jsonl"), "num_fewshot": [0, 3], "icl_task_type": "schema"}
    return {**base, **more}


def test_old_names_become_llm_foundrys_present_ones(tmp_path: Path) -> None:
    more = {"icl_task_type": "question_answering", "question_prelimiter": "Q: ", "has_categories": True, "cot_delimiter": " #"}
    [entry] = parse_entries({"icl_tasks": [task(tmp_path, **more)]}, "t.yaml").entries
    assert entry.icl_task_type == "generation_task_with_answers" and entry.has_categories and entry.num_fewshot == (0, 3)
    assert dict(entry.others) == {"prelimiter": "Q: ", "cot_delimiter": " #"}


def test_data_lie_in_the_working_folder_or_beside_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/data").mkdir(parents=True)
    (tmp_path / "a/data/rows.jsonl").touch()
    (tmp_path / "a/t.yaml").write_text(yaml.dump({"seed": 3, "icl_tasks": [task(tmp_path, dataset_uri="data/rows.jsonl")]}))
    monkeypatch.chdir(tmp_path)
    file = read_entries("a/t.yaml")
    assert file.entries[0].dataset_uri == "a/data/rows.jsonl" and (file.seed, file.batch_size, file.max_seq_len) == (3, 8, None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").touch()
    assert read_entries("a/t.yaml").entries[0].dataset_uri == "data/rows.jsonl"


def test_data_of_a_yaml_for_the_folder_above_lie_beside_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "eval/local_data").mkdir(parents=True)
    (tmp_path / "eval/local_data/rows.jsonl").touch()
    (tmp_path / "eval/t.yaml").write_text(yaml.dump({"icl_tasks": [task(tmp_path, dataset_uri="eval/local_data/rows.jsonl")]}))
    for folder, url in ((tmp_path / "eval", "t.yaml"), (tmp_path, "eval/t.yaml"), (Path("/"), str(tmp_path / "eval/t.yaml"))):
        monkeypatch.chdir(folder)
        found = [read_entries(url).entries[0].dataset_uri, read_task_file(url).tasks[0].dataset_uri]
        assert [Path(uri).resolve() for uri in found] == [tmp_path / "eval/local_data/rows.jsonl"] * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"icl_task_type": "shema"}, "Did you mean schema"),
        ({"dataset_uri": "gone.jsonl"}, "gone.jsonl: no such file"),
        ({"num_fewshot": [-1]}, "give whole numbers"),
        ({"label": None}, "lacks label"),
        ({"prelimiter": "a", "question_prelimiter": "b"}, "are the same thing"),
        ({"metric_names": ["Other"]}, "only InContextLearningMultipleChoiceAccuracy"),
        ({"metric_names": "InContextLearningLMAccuracy"}, "only InContextLearningMultipleChoiceAccuracy"),
        ({"has_categories": "no"}, "true or false"),
        ({"num_fewshot": [0, 0]}, "appears more than once"),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, more: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_entries({"max_seq_len": 1, "icl_tasks": [task(tmp_path, **more)]}, "t.yaml")
    assert len(error.value.problems) == 2  # that of max_seq_len as well
    assert any(message in line for line in error.value.problems)


ANSWERS = {"icl_task_type": "question_answering"}


@pytest.mark.parametrize("parse", [parse_entries, parse_task_file])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_beams": 20}, "num_beams 20: each question is answered once, greedily"),
        ({"pass_at_k": [1, 5]}, "pass_at_k"),
        ({"generations_per_sample": 2}, "generations_per_sample 2"),
        ({"generation_kwargs": {"num_beams": 4}}, "num_beams 4: each question is answered once, greedily"),
        ({"generation_kwargs": {"do_sample": True}}, "do_sample True: each question"),
        ({"generation_kwargs": {"temperature": 0.7}}, "temperature 0.7: each question"),
        ({"generation_kwargs": {"max_new_tokens": 0}}, "max_new_tokens 0: give one whole number of at least 1"),
        ({"generation_kwargs": {"eos_token_id": [1, 2]}}, r"eos_token_id \[1, 2\]: give one whole number"),
        ({"generation_kwargs": "greedy"}, "generation_kwargs 'greedy': must hold"),
    ],
)
def test_every_backend_refuses_what_is_not_greedy_in_the_same_words(tmp_path: Path, parse: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"t\.yaml: task 1 \(x\): .*{message}"):
        parse({"icl_tasks": [task(tmp_path, **ANSWERS, **more)]}, "t.yaml")


def test_settings_that_change_nothing_are_taken_by_every_backend_and_the_others_kept(tmp_path: Path) -> None:
    moot = {"use_cache": True, "pad_token_id": 1, "do_sample": False, "num_beams": 1}
    old = {"metric_names": ["InContextLearningQAAccuracy"], "num_beams": 1, "pass_at_k": 1, "generations_per_sample": 1}
    content = {"icl_tasks": [task(tmp_path, **ANSWERS, **old, generation_kwargs={**moot, "max_new_tokens": 5, "eos_token_id": 3})]}
    [entry] = parse_entries(content, "t.yaml").entries
    assert dict(entry.others) == {"metric_names": old["metric_names"], "generation_kwargs": {"max_new_tokens": 5, "eos_token_id": 3}}
    for one in parse_task_file(content, "t.yaml").tasks:
        assert (one.max_new_tokens, one.eos_token_id) == (5, 3)
    content = {"icl_tasks": [task(tmp_path, num_beams=4, generation_kwargs={"num_beams": 4})]}  # of a schema nothing is generated
    assert dict(parse_entries(content, "t.yaml").entries[0].others) == {}
    assert parse_task_file(content, "t.yaml").tasks[0].max_new_tokens is None


@pytest.mark.parametrize("parse", [parse_entries, parse_task_file])
def test_data_of_llm_foundrys_own_files_lie_beside_the_yaml_without_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parse: Any
) -> None:
    (tmp_path / "a/local_data").mkdir(parents=True)
    (tmp_path / "a/local_data/rows.jsonl").touch()
    monkeypatch.chdir(tmp_path)

    def uri() -> str:
        file = parse({"icl_tasks": [task(tmp_path, dataset_uri="eval/local_data/rows.jsonl")]}, "a/t.yaml")
        return str((file.entries if hasattr(file, "entries") else file.tasks)[0].dataset_uri)

    assert uri() == "a/local_data/rows.jsonl"
    (tmp_path / "eval/local_data").mkdir(parents=True)
    (tmp_path / "eval/local_data/rows.jsonl").touch()
    assert uri() == "eval/local_data/rows.jsonl"


def test_llm_foundrys_batch_size_means_nothing_to_the_native_backend(tmp_path: Path) -> None:
    content = {"device_eval_batch_size": "auto", "icl_tasks": [task(tmp_path)]}
    assert len(parse_task_file(content, "t.yaml").tasks) == 2
    with pytest.raises(UserError, match="device_eval_batch_size auto"):
        parse_entries(content, "t.yaml")


@pytest.mark.parametrize("name", ["in_memory_hf_eval.yaml", "openlm_table.yaml", "light.yaml"])
def test_shipped_files_fit_llm_foundrys_layout(name: str, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load((repo / "eval" / name).read_text())
    for entry in content["icl_tasks"]:
        (tmp_path / entry["dataset_uri"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / entry["dataset_uri"]).touch()
    monkeypatch.chdir(tmp_path)
    file = read_entries(str(repo / "eval" / name))
    names = [f"{entry.label}/{n}-shot" for entry in file.entries for n in entry.num_fewshot]
    if name == "openlm_table.yaml":
        assert len(file.entries) == 12
        assert set(names) == {*ROWS, "mmlu/5-shot", "triviaqa/0-shot"}
        assert all(set(rows) <= set(names) for rows in PUBLISHED.values())
