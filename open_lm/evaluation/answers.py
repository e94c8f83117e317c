"""Generated answers: how long they may be, how they are made, and when they are right; LLM Foundry 0.22's semantics.

The model continues greedily until its end of text, a stop string, or as many new tokens as the longest right answer of the data set has
(10 more with a chain of thought's delimiter). The text is cut at the first stop string and behind the last delimiter; it is right when,
both sides normalised, it begins with one of the right answers.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from torch import nn

from open_lm.evaluation.icl import Question, Row
from open_lm.evaluation.models import continue_prompts
from open_lm.evaluation.precision import autocast
from open_lm.evaluation.scorer import ScorerOptions, Shape, plan_batches
from open_lm.evaluation.tasks import Task
from open_lm.progress import Progress
from open_lm.tokenizer import Tokenizer

_ROOM_FOR_THOUGHT = 10
_REGULAR = re.compile(r"[][.^$*+?{}()\\|]")
"""What makes a regular expression of a plain string."""
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def answer_length(task: Task, rows: Sequence[Row], tokenizer: Tokenizer) -> int:
    """Most new tokens of an answer: the longest right one as the tokenizer writes it, special tokens included."""
    responses = [text for row in rows for text in row["responses"]]
    longest = max(map(len, tokenizer.encode_batch(responses, special_tokens=True)))
    return max(1, longest + (_ROOM_FOR_THOUGHT if task.cot_delimiter else 0))


def generate_answers(
    model: nn.Module, tokenizer: Tokenizer, task: Task, questions: Sequence[Question], max_new_tokens: int, options: ScorerOptions
) -> list[str]:
    """What the model answers, in the order of the questions."""
    prompts = [question.requests[0].input_ids for question in questions]
    stop, eot_id = _stops(task, tokenizer), tokenizer.eot_id if task.eos_token_id is None else task.eos_token_id
    batches = plan_batches([Shape(len(ids) + max_new_tokens) for ids in prompts], options.generated_tokens)
    device = next(model.parameters()).device
    found: dict[int, str] = {}
    with Progress(f"{task.name}: answers", len(batches) // options.processes.count, "batches") as shown:
        for batch in options.processes.share(batches):
            ids = [prompts[i] for i in batch]
            with autocast(device, options.precision):
                new = continue_prompts(model, ids, max_new_tokens, eot_id, stop)
            whole = new if eot_id == tokenizer.eot_id else with_ends(new, max_new_tokens, eot_id)
            found.update({i: tokenizer.decode(row, skip_special_tokens=True) for i, row in zip(batch, whole, strict=True)})
            shown.done += 1
    merged = options.processes.merge(found)
    return [merged[index] for index in range(len(questions))]


def with_ends(new: Sequence[Sequence[int]], max_new_tokens: int, eot_id: int) -> list[list[int]]:
    """New ids with the end that each of them came to: LLM Foundry reads an end of one's own (a line break, say) as text."""
    return [[*ids, eot_id] if len(ids) < max_new_tokens else list(ids) for ids in new]


def _stops(task: Task, tokenizer: Tokenizer) -> Callable[[list[int]], bool]:
    """Whether the text so far will be cut, and where it will be cut stands: nothing behind that counts.

    What a regular expression finds may lie elsewhere in a longer text (`yes$`, `a.*b|c`), so that plain strings alone end a text early.
    """
    marks = task.early_stopping_criteria
    if not marks or any(_REGULAR.search(mark) for mark in marks):
        return lambda ids: False
    found = re.compile("|".join(marks))

    def stop(ids: list[int]) -> bool:
        return found.search(tokenizer.decode(ids, skip_special_tokens=True)) is not None

    return stop


def normalise(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces."""
    words = re.sub(r"\b(a|an|the)\b", " ", text.replace("_", " ").lower().translate(_PUNCTUATION))
    return " ".join(words.split())


def is_right_answer(task: Task, text: str, aliases: Sequence[str]) -> bool:
    """Whether a generated text answers a question rightly."""
    if task.early_stopping_criteria:
        text = re.split("|".join(task.early_stopping_criteria), text)[0]
    if task.cot_delimiter:
        text = text.split(task.cot_delimiter)[-1]
    clean = normalise if task.do_normalization else str.strip
    return clean(text).startswith(tuple(clean(alias) for alias in aliases))
