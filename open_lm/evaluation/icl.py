"""In-context-learning questions: rows of a data set -> prompts (text) -> requests (token ids) -> right or wrong.

The semantics are LLM Foundry 0.22's (`llmfoundry/eval/datasets/in_context_learning_evaluation.py`), so that a score here equals
a score there:
- every string of a row is stripped, the strings inside lists are not;
- the few-shot examples of question i are drawn by one `random.Random(seed)` per data set, in question order, and joined in the
  iteration order of a Python set;
- preamble (prompt string and examples), context and continuation are tokenised apart; special tokens go to the preamble only;
- a context is right-stripped before that; a schema's contexts are not, only their delimiter is, and only after a preamble;
- a continuation gets a leading space where the tokenizer has a token for " a";
- too long a request loses tokens at its left end;
- a prompt to generate from is read without the tokens that LLM Foundry pads with, which it masks;
- a generation task's answers come after a chain of thought where the rows have one; `open_lm.evaluation.answers` says how they are made
  and judged.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from open_lm import storage
from open_lm.evaluation.result import shots_given
from open_lm.evaluation.tasks import Task
from open_lm.storage.yaml_json import read_json
from open_lm.tokenizer import Tokenizer

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One question as text: request j reads `preamble`, `contexts[j]`, and is scored on `continuations[j]`.

    Multiple choice has one context and differing continuations, a schema the reverse, language modelling one of each; a generation task
    has one context, and its right answers in place of continuations.
    """

    preamble: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One sequence: ids of context and continuation, scored from `start` (at least 1) on."""

    input_ids: list[int]
    start: int


@dataclass(frozen=True)
class Question:
    """The requests of one question and the index of the right one (0 in language modelling).

    A generation task has one request, all of it context, and the right answers.
    """

    requests: tuple[Request, ...]
    gold: int
    aliases: tuple[str, ...] = ()
    cut: bool = field(default=False, compare=False)
    """A request has lost tokens at its left end."""


@dataclass(frozen=True)
class Score:
    """What the model says to one request."""

    perplexity: float
    """exp of the mean loss over the continuation's tokens, fp32; nan for an empty continuation."""
    greedy: bool
    """True when every token of the continuation is the model's first choice."""
    loss: float = math.nan
    """Sum of the losses of the continuation's tokens, fp32; 0 for an empty continuation."""


def read_rows(task: Task) -> list[Row]:
    """The rows of a task's jsonl data, strings stripped.

    Raises:
        ValueError: a file that can't be read, or a row that isn't one of this task type, with file and line.
    """
    try:
        data = storage.read_bytes(task.dataset_uri)
        lines = data.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{task.label}: dataset_uri {task.dataset_uri}: can't be read ({error}); give a jsonl file") from None
    except UnicodeDecodeError as error:
        place = 1 + data.count(b"\n", 0, error.start)
        said = storage.instead_of("a jsonl file", data[: storage.FIRST_BYTES], f"line {place} is not UTF-8: {error.reason}")
        raise ValueError(f"{task.label}: dataset_uri {task.dataset_uri}: {said}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_read_row(line, number, task))
    if not rows:
        raise ValueError(f"{task.label}: dataset_uri {task.dataset_uri}: holds no row")
    if task.icl_task_type == "generation_task_with_answers" and len({"chain_of_thought" in row for row in rows}) > 1:
        raise ValueError(f"{task.label}: dataset_uri {task.dataset_uri}: some rows have a 'chain_of_thought' and some none; give it to all")
    return rows


def by_category(task: Task, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The data sets of a task by name: one, or with categories one for each, in the order of their names.

    A name has the number of examples that there are, which is less than the task's where the rows don't suffice.
    """
    if not task.has_categories:
        return {_name(task, len(rows)): list(rows)}
    parts = {name: [row for row in rows if row["category"] == name] for name in sorted({row["category"] for row in rows})}
    return {f"{_name(task, len(part))}/{name}": part for name, part in parts.items()}


def _name(task: Task, rows: int) -> str:
    return replace(task, num_fewshot=shots_given(task.num_fewshot, rows)).name


def _read_row(line: str, number: int, task: Task) -> Row:
    where = f"{task.dataset_uri} line {number}"
    try:
        row = read_json(line, number, part=True)
    except ValueError as error:
        raise ValueError(f"{task.dataset_uri} {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object")
    texts, options = {
        "multiple_choice": (("query",), "choices"),
        "schema": (("continuation",), "context_options"),
        "language_modeling": (("context", "continuation"), None),
        "generation_task_with_answers": (("context", "answer"), None),
    }[task.icl_task_type]
    for key in (*texts, *(("category",) if task.has_categories else ())):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{where}: a {task.icl_task_type} row needs text under {key!r}")
    if options is not None:
        values, gold = row.get(options), row.get("gold")
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{where}: a {task.icl_task_type} row needs a list of texts under {options!r}")
        if not isinstance(gold, int) or not 0 <= gold < len(values):
            raise ValueError(f"{where}: 'gold' must be an index into {options!r}, not {gold!r}")
    more = _read_answers(row, task, where) if task.icl_task_type == "generation_task_with_answers" else {}
    stripped = {key: value.strip() if isinstance(value, str) and key != "category" else value for key, value in row.items()}
    return {**stripped, **more}


def _read_answers(row: Row, task: Task, where: str) -> Row:
    """`aliases`: the right answers; `responses`: each as a model would write it. Not stripped, as LLM Foundry measures them."""
    aliases = row.get("aliases") or []
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{where}: 'aliases' must be a list of texts, not {aliases!r}")
    thought = row.get("chain_of_thought", "")
    if not isinstance(thought, str):
        raise ValueError(f"{where}: 'chain_of_thought' must be text, not {thought!r}")
    answers = list(dict.fromkeys([row["answer"], *aliases]))
    before = f"{thought}{task.cot_delimiter}" if "chain_of_thought" in row else ""
    return {"aliases": answers, "responses": [before + answer for answer in answers]}


def few_shot_rows(n_rows: int, n_shots: int, question: int, rng: random.Random) -> set[int]:
    """Rows to show before a question, never itself; fewer than `n_shots` where the data set is too small.

    A set, because its iteration order is the order of the examples in LLM Foundry; so is the sequence of draws.
    """
    chosen = set(rng.sample(range(n_rows), shots_given(n_shots, n_rows)))
    if question in chosen:
        chosen.remove(question)
        other = rng.randrange(n_rows)
        while other in chosen or other == question:
            other = rng.randrange(n_rows)
        chosen.add(other)
    return chosen


def build_prompts(task: Task, rows: Sequence[Row]) -> list[Prompt]:
    """The prompts of all rows, in order (the draws of a row depend on the rows before it)."""
    rng = random.Random(task.fewshot_random_seed)
    build = {
        "multiple_choice": _multiple_choice,
        "schema": _schema,
        "language_modeling": _language_modeling,
        "generation_task_with_answers": _generation,
    }[task.icl_task_type]
    return [build(task, _preamble(task, rows, index, rng), row) for index, row in enumerate(rows)]


def _preamble(task: Task, rows: Sequence[Row], question: int, rng: random.Random) -> str:
    """The prompt string and the examples with their answers."""
    text = task.prompt_string
    if task.num_fewshot > 0:
        for index in few_shot_rows(len(rows), task.num_fewshot, question, rng):
            text += _example(task, rows[index], after=text)
    return text


def _example(task: Task, row: Row, after: str) -> str:
    delimiter = task.example_delimiter if after else ""
    if task.icl_task_type == "schema":  # here the prelimiter stands before the delimiter
        context, answer = row["context_options"][row["gold"]], row["continuation"]
        return f"{task.question_prelimiter}{delimiter}{context}{task.continuation_delimiter}{answer}"
    if task.icl_task_type == "multiple_choice":
        context, answer = row["query"], row["choices"][row["gold"]]
    elif task.icl_task_type == "generation_task_with_answers":
        thought = f"{row['chain_of_thought']}{task.cot_delimiter}" if "chain_of_thought" in row else ""
        context, answer = row["context"], thought + row["answer"]
    else:
        context, answer = row["context"], row["continuation"]
    return f"{delimiter}{task.question_prelimiter}{context}{task.continuation_delimiter}{answer}"


def _open_question(task: Task, preamble: str, context: str) -> str:
    delimiter = task.example_delimiter if preamble else ""
    return f"{delimiter}{task.question_prelimiter}{context}{task.continuation_delimiter}".rstrip()


def _multiple_choice(task: Task, preamble: str, row: Row) -> Prompt:
    return Prompt(preamble, (_open_question(task, preamble, row["query"]),), tuple(row["choices"]), row["gold"])


def _language_modeling(task: Task, preamble: str, row: Row) -> Prompt:
    return Prompt(preamble, (_open_question(task, preamble, row["context"]),), (row["continuation"],), 0)


def _generation(task: Task, preamble: str, row: Row) -> Prompt:
    return Prompt(preamble, (_open_question(task, preamble, row["context"]),), (), 0, tuple(row["aliases"]))


def _schema(task: Task, preamble: str, row: Row) -> Prompt:
    before, behind = (task.example_delimiter, task.continuation_delimiter.rstrip()) if preamble else ("", "")
    contexts = tuple(f"{task.question_prelimiter}{before}{option}{behind}" for option in row["context_options"])
    return Prompt(preamble, contexts, (row["continuation"],), row["gold"])


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, max_seq_len: int, where: str, masked: int | None = None
) -> list[Question]:
    """Prompts as token ids, each request at most `max_seq_len` long (a generation task's less what is to be generated).

    Args:
        where: names the task in errors.
        masked: an id that the model doesn't see; LLM Foundry masks what it pads with wherever that stands in a prompt to generate from,
            at its beginning where the tokenizer puts it before every text.

    Raises:
        ValueError: an empty continuation, or one that leaves no room for any context.
    """
    preambles = [_without_end(ids, tokenizer.eot_id) for ids in tokenizer.encode_batch([p.preamble for p in prompts], special_tokens=True)]
    contexts = iter(tokenizer.encode_batch([text for p in prompts for text in p.contexts]))
    spaced = _space_before(tokenizer)
    continuations = iter(tokenizer.encode_batch([spaced(text) for p in prompts for text in p.continuations]))
    questions = []
    for number, (prompt, preamble) in enumerate(zip(prompts, preambles, strict=True), 1):
        before = [preamble + next(contexts) for _ in prompt.contexts]
        after = [next(continuations) for _ in prompt.continuations]
        pairs = [(b, a) for b in before for a in after or [[]]]  # one of the two has length 1
        if not all(after):
            raise ValueError(
                f"{where}: question {number}: an empty continuation can't be scored, LLM Foundry fails at it, too; mend the data"
            )
        requests = tuple(_request(b, a, max_seq_len, f"{where}: question {number}") for b, a in pairs)
        if masked is not None:
            requests = tuple(Request(ids, len(ids)) for ids in (_without(masked, one.input_ids) for one in requests))
        cut = any(len(b) + len(a) > max_seq_len for b, a in pairs)
        questions.append(Question(requests, prompt.gold, prompt.aliases, cut))
    return questions


def _without_end(ids: list[int], eot_id: int) -> list[int]:
    """A tokenizer that closes every text with end of text must not do so before the question."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == eot_id else ids


def _without(masked: int, ids: list[int]) -> list[int]:
    """What is left, or one of them where nothing else is there."""
    return [i for i in ids if i != masked] or ids[-1:]


def _space_before(tokenizer: Tokenizer) -> Callable[[str], str]:
    if len(tokenizer.encode(" a")) != 1:
        return lambda text: text
    return lambda text: text if text.startswith(" ") else f" {text}"


def _request(context: list[int], continuation: list[int], max_seq_len: int, where: str) -> Request:
    room = max_seq_len - len(continuation)
    if not context or room < 1:
        what = f"its continuation of {len(continuation)} tokens leaves none for it in max_seq_len {max_seq_len}"
        raise ValueError(f"{where}: no context to score from: {what if context else 'it is empty'}")
    context = context[-room:]
    return Request(context + continuation, len(context))


def choice(scores: Sequence[Score]) -> int:
    """The first request of lowest perplexity. As in LLM Foundry a nan in first place stays chosen, elsewhere it never is."""
    values = [score.perplexity for score in scores]
    if math.isnan(values[0]):
        return 0
    return values.index(min(values))


def is_right(task: Task, question: Question, scores: Sequence[Score]) -> bool:
    """Whether a question is answered rightly: the gold choice, or in language modelling every token greedy."""
    if task.icl_task_type == "language_modeling":
        return scores[0].greedy
    return choice(scores) == question.gold
