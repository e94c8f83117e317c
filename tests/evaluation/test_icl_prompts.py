"""Prompts and token ids of LLM Foundry's three scored task types, and how an answer is judged."""

from __future__ import annotations

import gzip
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_lm.evaluation import icl
from open_lm.evaluation.benchmark import load_data_sets
from open_lm.evaluation.icl import Prompt, Question, Request, Score
from open_lm.evaluation.result import notice
from open_lm.evaluation.tasks import Task
from open_lm.tokenizer import Tokenizer

CHOICE_ROWS = [
    {"query": "Sky?", "choices": ["blue", "red"], "gold": 0},
    {"query": "Snow?", "choices": ["black", "white"], "gold": 1},
]
SCHEMA_ROWS = [
    {"context_options": ["Ann fell because Ann", "Ann fell because Bob"], "continuation": "slipped.", "gold": 0},
    {"context_options": ["Joe ran since Joe", "Joe ran since Kim"], "continuation": "waited.", "gold": 1},
]
LM_ROWS = [{"context": "one two", "continuation": "three"}, {"context": "four five", "continuation": "six"}]


def task(kind: str, **values: Any) -> Task:
    return Task("t", "rows.jsonl", kind, **values)  # type: ignore[arg-type]


def first(rows: list[dict[str, Any]], kind: str, **values: Any) -> Prompt:
    return icl.build_prompts(task(kind, **values), rows)[0]


def test_multiple_choice_scores_each_choice_after_one_stripped_context() -> None:
    prompt = first(CHOICE_ROWS, "multiple_choice", continuation_delimiter="\nAnswer: ")
    assert prompt == Prompt("", ("Sky?\nAnswer:",), ("blue", "red"), 0)


def test_multiple_choice_examples_show_the_right_choice_and_join_by_the_delimiter() -> None:
    prompt = first(CHOICE_ROWS, "multiple_choice", num_fewshot=1, continuation_delimiter="\nAnswer: ")
    assert prompt == Prompt("Snow?\nAnswer: white", ("\nSky?\nAnswer:",), ("blue", "red"), 0)


def test_the_prompt_string_comes_first_and_the_prelimiter_before_every_question() -> None:
    prompt = first(
        CHOICE_ROWS, "multiple_choice", num_fewshot=1, prompt_string="Quiz.", question_prelimiter="Q: ", example_delimiter="\n\n"
    )
    assert prompt.preamble == "Quiz.\n\nQ: Snow? white"
    assert prompt.contexts == ("\n\nQ: Sky?",)


def test_language_modelling_strips_the_delimiter_before_the_continuation() -> None:
    assert first(LM_ROWS, "language_modeling") == Prompt("", ("one two",), ("three",), 0)
    assert first(LM_ROWS, "language_modeling", num_fewshot=1) == Prompt("four five six", ("\none two",), ("three",), 0)


def test_a_schema_scores_one_continuation_after_each_context() -> None:
    prompt = first(SCHEMA_ROWS, "schema", continuation_delimiter=": ")
    assert prompt == Prompt("", ("Ann fell because Ann", "Ann fell because Bob"), ("slipped.",), 0)


def test_a_schema_takes_its_stripped_delimiter_only_after_examples() -> None:
    prompt = first(SCHEMA_ROWS, "schema", num_fewshot=1, continuation_delimiter=": ", question_prelimiter="Q ")
    assert prompt.preamble == "Q Joe ran since Kim: waited."
    assert prompt.contexts == ("Q \nAnn fell because Ann:", "Q \nAnn fell because Bob:")


def test_a_schemas_contexts_keep_their_own_white_space() -> None:
    rows = [{**SCHEMA_ROWS[0], "context_options": ["Ann ", "Bob "]}, SCHEMA_ROWS[1]]
    assert first(rows, "schema").contexts == ("Ann ", "Bob ")


def test_examples_are_llm_foundrys_draws_in_set_order() -> None:
    # random.Random(1234).sample(range(100), 4) is [99, 56, 14, 0]; 0 is the question itself, and the next draw is 11.
    rng = random.Random(1234)
    assert [list(icl.few_shot_rows(100, 4, question, rng)) for question in range(2)] == [[56, 11, 99, 14], [88, 74, 4, 85]]
    rows = [{"context": f"c{i}", "continuation": f"a{i}"} for i in range(100)]
    prompts = icl.build_prompts(task("language_modeling", num_fewshot=4), rows)
    assert prompts[0].preamble == "c56 a56\nc11 a11\nc99 a99\nc14 a14"
    assert prompts[1].preamble == "c88 a88\nc74 a74\nc4 a4\nc85 a85"


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 1000))
def test_examples_are_distinct_never_the_question_and_as_many_as_there_can_be(n_rows: int, shots: int, seed: int) -> None:
    rng = random.Random(seed)
    for question in range(n_rows):
        chosen = icl.few_shot_rows(n_rows, shots, question, rng)
        assert question not in chosen and chosen <= set(range(n_rows))
        assert len(chosen) == min(shots, n_rows - 1)


def encode(prompt: Prompt, tokenizer: Tokenizer, max_seq_len: int = 1000) -> Question:
    return icl.encode_prompts([prompt], tokenizer, max_seq_len, "t/0-shot")[0]


def test_preamble_context_and_continuation_are_tokenised_apart_with_a_space_before_the_continuation(tokenizer: Tokenizer) -> None:
    question = encode(Prompt("a cat", (" saw", " on"), ("a mat",), 1), tokenizer)
    assert len(tokenizer.encode(" a")) == 1
    for request, context in zip(question.requests, (" saw", " on"), strict=True):
        before = tokenizer.encode("a cat") + tokenizer.encode(context)
        assert request == Request(before + tokenizer.encode(" a mat"), len(before))
    assert question.gold == 1


def test_a_space_that_is_there_already_is_not_doubled(tokenizer: Tokenizer) -> None:
    (request,) = encode(Prompt("", ("a cat",), (" saw",), 0), tokenizer).requests
    assert tokenizer.decode(request.input_ids[request.start :]) == " saw"


def test_too_long_a_request_loses_its_left_end(tokenizer: Tokenizer) -> None:
    prompt = Prompt("what a day, ", ("a cat",), (" saw",), 0)
    (whole,) = encode(prompt, tokenizer).requests
    n_continuation = len(whole.input_ids) - whole.start
    (cut,) = encode(prompt, tokenizer, n_continuation + 2).requests
    assert cut == Request(whole.input_ids[-(n_continuation + 2) :], 2)


def test_a_continuation_without_room_for_context_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"t/0-shot: question 1: .*max_seq_len 3"):
        encode(Prompt("", ("a cat",), ("zzzzzzzz",), 0), tokenizer, 3)
    with pytest.raises(ValueError, match=r"t/0-shot: question 1: .*empty"):
        encode(Prompt("", ("",), ("cat",), 0), tokenizer)


def test_an_empty_continuation_is_refused_where_no_space_comes_before_it(tokenizer: Tokenizer) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    backend.normalizer = tokenizers.normalizers.Replace(" ", "_")
    spaceless = Tokenizer(backend.to_str(), "spaceless")
    with pytest.raises(ValueError, match=r"t/0-shot: question 1: an empty continuation can't be scored"):
        encode(Prompt("", ("a cat",), ("cat", ""), 0), spaceless)


def test_prompts_to_generate_from_lack_what_llm_foundry_masks(tokenizer: Tokenizer) -> None:
    prompt = Prompt(f"what a{tokenizer.eot_token}day", ("a cat",), (), 0, ("x",))
    [kept], [masked] = (icl.encode_prompts([prompt], tokenizer, 64, "t", mask) for mask in (None, tokenizer.eot_id))
    ids = kept.requests[0].input_ids
    assert tokenizer.eot_id in ids
    assert masked.requests == (Request([i for i in ids if i != tokenizer.eot_id], len(ids) - 1),)
    [nothing] = icl.encode_prompts([Prompt(tokenizer.eot_token, ("",), (), 0, ("x",))], tokenizer, 64, "t", tokenizer.eot_id)
    assert nothing.requests[0].input_ids == [tokenizer.eot_id]


def test_special_tokens_go_around_the_preamble_only_and_its_end_is_dropped(tokenizer: Tokenizer) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    eot = tokenizer.eot_token
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{eot} $A {eot}", special_tokens=[(eot, tokenizer.eot_id)])
    adding = Tokenizer(backend.to_str(), "adds end of text")
    (request,) = encode(Prompt("a", (" cat",), ("saw",), 0), adding).requests
    parts = (tokenizer.encode(text) for text in ("a", " cat", " saw"))
    assert request.input_ids == [tokenizer.eot_id, *(i for part in parts for i in part)]


def scores(*perplexities: float) -> list[Score]:
    return [Score(value, False) for value in perplexities]


@pytest.mark.parametrize(
    ("perplexities", "chosen"),
    [((3.0, 2.0, 4.0), 1), ((2.0, 1.0, 1.0), 1), ((math.inf, math.inf), 0), ((math.nan, 1.0), 0), ((2.0, math.nan, 1.0), 2)],
)
def test_the_first_lowest_perplexity_is_chosen(perplexities: tuple[float, ...], chosen: int) -> None:
    assert icl.choice(scores(*perplexities)) == chosen


def test_language_modelling_is_right_when_every_token_is_greedy() -> None:
    question = Question((Request([1, 2], 1),), 0)
    kind = task("language_modeling")
    assert icl.is_right(kind, question, [Score(1.0, True)])
    assert not icl.is_right(kind, question, [Score(1.0, False)])


def read(path: Path, kind: str, *lines: str) -> list[icl.Row]:
    path.write_text("\n".join(lines))
    return icl.read_rows(Task("t", str(path), kind))  # type: ignore[arg-type]


def test_strings_of_a_row_are_stripped_and_those_in_lists_are_not(tmp_path: Path) -> None:
    row = {"query": " Sky? \n", "choices": [" blue", "red "], "gold": 1}
    assert read(tmp_path / "r.jsonl", "multiple_choice", json.dumps(row), "") == [{**row, "query": "Sky?"}]


def test_rows_that_other_programs_write_are_read_and_half_a_character_is_named(tmp_path: Path, shared: Path) -> None:
    cases = shared / "data/cases"
    assert icl.read_rows(Task("t", str(cases / "bom_task.jsonl"), "multiple_choice"))[0]["query"] == "two and two"
    row = '{"query": "a", "choices": ["b"], "gold": 0, "score": NaN, "most": -Infinity}'
    assert read(tmp_path / "r.jsonl", "multiple_choice", row)[0]["most"] == -math.inf
    with pytest.raises(ValueError, match=r"half_a_surrogate.jsonl line 1: has half a surrogate pair .* at character 20"):
        icl.read_rows(Task("t", str(cases / "half_a_surrogate.jsonl"), "multiple_choice"))
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(row.encode()))
    with pytest.raises(ValueError, match=r"packed.jsonl: is not a jsonl file but a gzip file; decompress it first"):
        icl.read_rows(Task("t", str(tmp_path / "packed.jsonl"), "multiple_choice"))


@pytest.mark.parametrize(
    ("kind", "line", "words"),
    [
        ("language_modeling", "{", "is not JSON"),
        ("language_modeling", "no row", "is not JSON"),
        ("multiple_choice", '{"query": "a", "choices": ["b"], "gold": 0, "query": "c"}', "the key 'query' is given twice"),
        ("language_modeling", "[]", "not a JSON object"),
        ("language_modeling", '{"context": "a"}', "'continuation'"),
        ("multiple_choice", '{"query": "a", "choices": ["b", 1], "gold": 0}', "'choices'"),
        ("multiple_choice", '{"query": "a", "choices": ["b"], "gold": 1}', "'gold'"),
        ("schema", '{"context_options": ["a"], "gold": 0}', "'continuation'"),
    ],
)
def test_a_wrong_row_is_named_with_file_and_line(tmp_path: Path, kind: str, line: str, words: str) -> None:
    good = json.dumps(LM_ROWS[0] | CHOICE_ROWS[0] | SCHEMA_ROWS[0])
    with pytest.raises(ValueError, match=r"rows\.jsonl line 2: .*" + words):
        read(tmp_path / "rows.jsonl", kind, good, line)


def test_a_name_has_the_examples_that_there_are_and_a_line_says_what_lacks_or_is_cut(shared: Path, tokenizer: Tokenizer) -> None:
    six = Task("six", str(shared / "data/cases/six_rows.jsonl"), "multiple_choice", 6)
    [data] = load_data_sets(six, tokenizer, 1000)
    assert data.name == "six/5-shot"
    assert data.notice == "six/5-shot: 5 examples before a question in place of 6, since there are 6 rows"
    assert notice("t", 6, 1, 0, 1, 9) == "t: 0 examples before a question in place of 6, since there is 1 row"
    [whole] = load_data_sets(replace(six, num_fewshot=5), tokenizer, 1000)
    assert (whole.name, whole.notice, whole.questions) == ("six/5-shot", "", data.questions)
    longest = max(len(one.input_ids) for question in whole.questions for one in question.requests)
    [exact], [cut] = (load_data_sets(replace(six, num_fewshot=5, max_seq_len=n), tokenizer, 1000) for n in (longest, longest - 1))
    assert exact.notice == ""
    count = sum(any(len(one.input_ids) == longest for one in question.requests) for question in whole.questions)
    assert cut.notice == f"six/5-shot: {count} of 6 questions lose their left end to max_seq_len {longest - 1}"


def test_each_category_is_named_by_the_examples_that_it_has(tmp_path: Path) -> None:
    rows = [{"context": "a", "continuation": "b", "category": name} for name in ("big", "big", "big", "small", "small")]
    task = Task("t", "rows.jsonl", "language_modeling", 2, has_categories=True)
    assert {name: len(part) for name, part in icl.by_category(task, rows).items()} == {"t/2-shot/big": 3, "t/1-shot/small": 2}
