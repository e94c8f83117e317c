"""Generated answers: how long, where they end, when they are right."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from open_lm.evaluation import icl
from open_lm.evaluation.answers import answer_length, generate_answers, is_right_answer, normalise
from open_lm.evaluation.benchmark import load_data_sets
from open_lm.evaluation.icl import Question, Request
from open_lm.evaluation.scorer import ScorerOptions
from open_lm.evaluation.tasks import Task
from open_lm.generation import generate
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer


def task(**values: Any) -> Task:
    return Task("t", "rows.jsonl", "generation_task_with_answers", **values)


@pytest.mark.parametrize(
    ("text", "plain"),
    [("The  Cat_sat, on a mat!", "cat sat on mat"), ("an ‘anthem’", "anthem"), ("theatre", "theatre"), ("Don't", "don t"), ("a", "")],
)
def test_answers_are_compared_without_case_punctuation_and_articles(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("values", "text", "aliases", "right"),
    [
        ({}, " Paris, France", ["paris"], True),
        ({}, "Paris", ["Paris, France"], False),
        ({}, "in Paris", ["Paris"], False),
        ({"do_normalization": False}, " Paris is", ["Paris "], True),
        ({"do_normalization": False}, "paris", ["Paris"], False),
        ({"early_stopping_criteria": ("\n", "Q:")}, "no Q: yes\n", ["no q"], False),
        ({"cot_delimiter": "####"}, "first yes #### no #### maybe", ["maybe"], True),
        ({"cot_delimiter": "####", "early_stopping_criteria": ("\n",)}, "yes\n#### maybe", ["maybe"], False),
        ({}, "anything", ["the"], True),  # an alias of which nothing is left is the beginning of every text
    ],
)
def test_an_answer_is_right_when_what_is_left_of_it_begins_with_an_alias(
    values: dict[str, Any], text: str, aliases: list[str], right: bool
) -> None:
    assert is_right_answer(task(**values), text, aliases) == right


def test_the_longest_answer_as_written_and_ten_more_with_a_delimiter_are_the_most_that_is_generated(tokenizer: Tokenizer) -> None:
    rows = [{"responses": ["a cat", " a hat on a mat "]}, {"responses": [""]}]
    longest = len(tokenizer.encode(" a hat on a mat "))
    assert answer_length(task(), rows, tokenizer) == longest
    assert answer_length(task(cot_delimiter="#"), rows, tokenizer) == longest + 10
    assert answer_length(task(), rows[1:], tokenizer) == 1


def test_examples_show_their_chain_of_thought(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"context": "2+2", "answer": " 4 ", "chain_of_thought": "add "}\n' * 2)
    one = Task("t", str(path), "generation_task_with_answers", num_fewshot=1, cot_delimiter=" #### ", continuation_delimiter="=")
    rows = icl.read_rows(one)
    (prompt, _) = icl.build_prompts(one, rows)
    assert (prompt.preamble, prompt.contexts, prompt.aliases) == ("2+2=add #### 4", ("\n2+2=",), (" 4 ",))
    assert rows[0]["responses"] == ["add  ####  4 "]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ('{"context": "a", "answer": "b"}', "some rows have a 'chain_of_thought'"),
        ('{"context": "a", "answer": "b", "aliases": "c"}', "line 2: 'aliases'"),
        ('{"context": "a", "answer": "b", "chain_of_thought": null}', "line 2: 'chain_of_thought'"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Any, second: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"context": "a", "answer": "b", "chain_of_thought": "c"}\n' + second)
    with pytest.raises(ValueError, match=words):
        icl.read_rows(Task("t", str(path), "generation_task_with_answers"))


def test_categories_are_data_sets_of_their_own_in_order(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"context": "{i}", "answer": "b", "category": "{"zab"[i % 3]}"}}\n' for i in range(6)))
    one = Task("t", str(path), "generation_task_with_answers", num_fewshot=1, has_categories=True)
    sets = icl.by_category(one, icl.read_rows(one))
    assert list(sets) == ["t/1-shot/a", "t/1-shot/b", "t/1-shot/z"]
    assert [prompt.preamble for prompt in icl.build_prompts(one, sets["t/1-shot/z"])] == ["3 b", "0 b"]


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_answers_are_the_greedy_continuations_cut_at_a_stop(model: Transformer, tokenizer: Tokenizer, batch_tokens: int) -> None:
    prompts = [[5, 6, 7], [9] * 20, [4]]
    questions = [Question((Request(ids, len(ids)),), 0, ("x",)) for ids in prompts]
    whole = [tokenizer.decode(generate(model, [ids], max_new_tokens=9)[0], skip_special_tokens=True) for ids in prompts]
    options = ScorerOptions(batch_tokens)
    assert generate_answers(model, tokenizer, task(), questions, 9, options) == whole
    mark = whole[0][2:4]
    found = generate_answers(model, tokenizer, task(early_stopping_criteria=(mark,)), questions, 9, options)
    for text, cut in zip(whole, found, strict=True):
        assert text.startswith(cut) and text.split(mark)[0] == cut.split(mark)[0]
    assert len(found[0]) < len(whole[0])


@pytest.mark.parametrize(("mark", "early"), [("2", True), ("2|h", False), ("2$", False), (".", False)])
def test_a_text_ends_early_only_where_it_will_be_cut(model: Transformer, tokenizer: Tokenizer, mark: str, early: bool) -> None:
    prompts = [[index + 5, 7] for index in range(30)]
    questions = [Question((Request(ids, 2),), 0, ("x",)) for ids in prompts]
    whole = [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in generate(model, prompts, max_new_tokens=12, eot_id=tokenizer.eot_id)
    ]
    found = generate_answers(model, tokenizer, task(early_stopping_criteria=(mark,)), questions, 12, ScorerOptions())
    assert [re.split(mark, text)[0] for text in found] == [re.split(mark, text)[0] for text in whole]
    assert (sum(map(len, found)) < sum(map(len, whole))) == early


def test_an_end_and_a_length_of_a_tasks_own_are_honoured(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"context": f"a {word}", "answer": "a long answer of many tokens"} for word in ("cat", "dog", "hat", "mat")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = Task("t", str(tmp_path / "rows.jsonl"), "generation_task_with_answers")
    [plain], [short] = (load_data_sets(replace(one, max_new_tokens=n), tokenizer, 64) for n in (None, 3))
    assert plain.max_new_tokens == len(tokenizer.encode("a long answer of many tokens")) and short.max_new_tokens == 3
    assert plain.questions == short.questions
    ids = [question.requests[0].input_ids for question in plain.questions]
    whole = generate(model, ids, max_new_tokens=9)
    end = whole[0][2]
    found = generate_answers(model, tokenizer, replace(one, eos_token_id=end), plain.questions, 9, ScorerOptions())
    assert found == [tokenizer.decode(new[: new.index(end) + 1] if end in new else new) for new in whole]
