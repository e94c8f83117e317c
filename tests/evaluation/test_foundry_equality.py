"""Every task type beside LLM Foundry itself, in its own environment: the same texts, token ids, choices and accuracies."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from open_lm.checkpoint.load import load_model
from open_lm.evaluation import icl
from open_lm.evaluation.answers import generate_answers, is_right_answer
from open_lm.evaluation.benchmark import load_data_sets, score_tasks
from open_lm.evaluation.foundry import environment
from open_lm.evaluation.icl import Prompt
from open_lm.evaluation.scorer import ScorerOptions, score_requests
from open_lm.evaluation.tasks import TaskFile, read_task_file
from open_lm.generation import generate
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.slow
MAX_SEQ_LEN = 96


@pytest.fixture(scope="module")
def foundry_python() -> Path:
    """The Python of LLM Foundry's environment; tests skip without one, and fail under OPENLM_REQUIRE_FOUNDRY=1."""
    python = environment.find_python()
    if python is None and os.environ.get("OPENLM_REQUIRE_FOUNDRY"):
        pytest.fail("OPENLM_REQUIRE_FOUNDRY is set, but LLM Foundry's environment is not built: scripts/setup.sh foundry")
    if python is None:
        pytest.skip("needs LLM Foundry's environment: scripts/setup.sh foundry")
    return python


VOCABULARY = ["the", "a", "cat", "dog", "sat", "on", "and", "was", "naïve", "“red”", "blue,", "of", "men", "東京", "town", "said.", "_x_"]


def words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(n))


def make_rows(n: int, follow: Callable[[str], str]) -> dict[str, list[dict[str, Any]]]:
    """Rows with odd white space, lengths beyond MAX_SEQ_LEN, and categories; `follow` says what the model would write next."""
    rng = random.Random(0)
    rows: dict[str, list[dict[str, Any]]] = {"choices": [], "schema": [], "words": [], "answers": [], "thoughts": []}
    for i in range(n):
        category = {"category": ["law", "art", "a b"][i % 3]}
        text, tail = words(rng, rng.randint(1, 30)), rng.choice(["", " ", "\n", "  "])
        options = [rng.choice(["", " "]) + words(rng, rng.randint(1, 9)) + rng.choice(["", " "]) for _ in range(4)]
        rows["choices"].append({"query": tail + text + tail, "choices": options, "gold": i % 4, **category})
        rows["schema"].append({"context_options": [text + tail, text[: len(text) // 2]], "continuation": " " + options[0], "gold": i % 2})
        rows["words"].append({"context": text + tail, "continuation": follow(text) if i % 2 else options[1]})
        aliases = [options[2], " The " + words(rng, 1).title() + "!", ["the", "and", "cat"][i % 3]][: 2 + (i % 4 == 0)]
        answer = {"context": text + tail, "answer": follow(text) if i % 4 == 1 else "It was", "aliases": aliases}
        rows["answers"].append({**answer, **category})
        rows["thoughts"].append({**answer, "chain_of_thought": words(rng, 5) + " "})
    return rows


TASKS = """
max_seq_len: 96
icl_tasks:
- {label: choices, dataset_uri: choices.jsonl, num_fewshot: [0, 3], icl_task_type: multiple_choice, continuation_delimiter: "\\nAnswer: "}
- {label: kinds, dataset_uri: choices.jsonl, num_fewshot: [2], icl_task_type: multiple_choice, has_categories: true,
   prompt_string: "A quiz. ", question_prelimiter: "Q: ", example_delimiter: "\\n\\n", fewshot_random_seed: 7}
- {label: schema, dataset_uri: schema.jsonl, num_fewshot: [0, 2], icl_task_type: schema, question_prelimiter: "S: "}
- {label: words, dataset_uri: words.jsonl, num_fewshot: [0, 2], icl_task_type: language_modeling}
- {label: answers, dataset_uri: answers.jsonl, num_fewshot: [0, 2], icl_task_type: generation_task_with_answers,
   continuation_delimiter: "\\nA: ", question_prelimiter: "Q: ", early_stopping_criteria: ["\\n", " and"]}
- {label: answer_kinds, dataset_uri: answers.jsonl, num_fewshot: [1], icl_task_type: generation_task_with_answers, has_categories: true,
   do_normalization: false}
- {label: thoughts, dataset_uri: thoughts.jsonl, num_fewshot: [2], icl_task_type: generation_task_with_answers, cot_delimiter: " of "}
"""
BEGUN_TASKS = """
max_seq_len: 96
icl_tasks:
- {label: choices, dataset_uri: choices.jsonl, num_fewshot: [1], icl_task_type: multiple_choice}
- {label: answers, dataset_uri: answers.jsonl, num_fewshot: [0, 1], icl_task_type: generation_task_with_answers}
- {label: answer_ends, dataset_uri: answers.jsonl, num_fewshot: [0], icl_task_type: generation_task_with_answers,
   early_stopping_criteria: ["[.,]", "and$"], generation_kwargs: {max_new_tokens: 7, eos_token_id: 187, use_cache: false}}
"""
"""For a tokenizer that puts the end of text before every text and pads with it."""


def begun(tokenizer: Tokenizer) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(tokenizer.json_text.replace("<|padding|>", "<|nothing|>"))
    eot = tokenizer.eot_token
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{eot} $A", special_tokens=[(eot, tokenizer.eot_id)])
    return Tokenizer(backend.to_str(), "begun")


@pytest.fixture(scope="module")
def small_lm(shared: Path) -> tuple[Transformer, Tokenizer]:
    folder = shared / "data/golden/small_lm"
    model, _ = load_model(folder / "epoch_1.pt", str(folder / "model_config.json"))
    return model, load_tokenizer(str(shared / "data/tokenizers/20B_tokenizer.json"))


@pytest.fixture(scope="module")
def both(
    foundry_python: Path, shared: Path, repo: Path, small_lm: tuple[Transformer, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[TaskFile, Tokenizer, dict[str, Any]]]:
    """Tasks, the tokenizer for them, and what LLM Foundry makes of each of them."""
    folder = tmp_path_factory.mktemp("tasks")
    model, tokenizer = small_lm

    def follow(text: str) -> str:
        (new,) = generate(model, [tokenizer.encode(text)], max_new_tokens=1)
        return tokenizer.decode(new)

    for name, rows in make_rows(9, follow).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks.yaml").write_text(TASKS)
    (folder / "begun.yaml").write_text(BEGUN_TASKS)
    (folder / "begun.json").write_text(begun(tokenizer).json_text)
    golden, peer = shared / "data/golden/small_lm", repo / "tests/evaluation/foundry_peer.py"
    pairs = [folder / "tasks.yaml", shared / "data/tokenizers/20B_tokenizer.json", folder / "begun.yaml", folder / "begun.json"]
    command = [foundry_python, peer, golden / "epoch_1.pt", golden / "model_config.json", folder / "out.json", *pairs]
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [read_task_file(str(folder / name)) for name in ("tasks.yaml", "begun.yaml")]
    return list(zip(files, (tokenizer, begun(tokenizer)), json.loads((folder / "out.json").read_text()), strict=True))


def spoken(prompt: Prompt) -> list[list[Any]]:
    """The texts of a question in the order of LLM Foundry's calls of its tokenizer; True where special tokens are added."""
    spaced = [text if text.startswith(" ") else f" {text}" for text in prompt.continuations]
    return [[prompt.preamble, True], *([text, False] for text in (*prompt.contexts, *spaced))]


@pytest.mark.parametrize("which", [0, 1], ids=["usual", "begun"])
def test_texts_ids_choices_and_accuracies_equal_llm_foundrys(
    both: list[tuple[TaskFile, Tokenizer, dict[str, Any]]], small_lm: tuple[Transformer, Tokenizer], which: int
) -> None:
    file, tokenizer, theirs = both[which]
    model, _ = small_lm
    options = ScorerOptions(batch_tokens=700)
    results = score_tasks(model, tokenizer, file.tasks, max_seq_len=MAX_SEQ_LEN, options=options)
    assert list(results) == list(theirs)
    for task in file.tasks:
        prompts = {name: icl.build_prompts(task, rows) for name, rows in icl.by_category(task, icl.read_rows(task)).items()}
        for data in load_data_sets(task, tokenizer, MAX_SEQ_LEN):
            their = theirs[data.name]
            assert [text for prompt in prompts[data.name] for text in spoken(prompt)] == their["texts"], data.name
            requests = [request for question in data.questions for request in question.requests]
            assert [[request.input_ids, request.start] for request in requests] == their["requests"], data.name
            if data.max_new_tokens:
                assert data.max_new_tokens == their["max_new_tokens"]
                texts = generate_answers(model, tokenizer, task, data.questions, data.max_new_tokens, options)
                right = [is_right_answer(task, text, one.aliases) for text, one in zip(texts, data.questions, strict=True)]
            else:
                scores = iter(score_requests(model, requests, options))
                answers = [[next(scores) for _ in question.requests] for question in data.questions]
                right = [icl.is_right(task, question, found) for question, found in zip(data.questions, answers, strict=True)]
                if their["chosen"]:
                    assert [icl.choice(found) for found in answers] == their["chosen"], data.name
            assert right == [bool(one) for one in their["right"]], data.name
            assert results[data.name].accuracy == pytest.approx(their["accuracy"], abs=1e-6), data.name
    for kind in ("choices", "schema", "words", "answer", "thoughts"):
        judged = [one for name in theirs if name.startswith(kind) for one in theirs[name]["right"]]
        assert not judged or 0 < sum(judged) < len(judged), kind
