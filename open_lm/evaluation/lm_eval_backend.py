"""lm-evaluation-harness's own tasks on our scorer, through its `LM` interface (extra `[eval]`).

Prompts, few-shot examples, filters and metrics are lm-eval's; of the model it asks the log-likelihood of continuations, of whole
texts in windows of the model's length, and greedy text up to a stop string. Tokens are handled as by lm-eval's own Hugging Face model:
a sequence keeps its last seq_len + 1 tokens, an empty context is the token before a text (begin of sequence, else end of text).

Imported where lm-eval is installed only.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from lm_eval import simple_evaluate, utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from torch import nn

from open_lm.evaluation.hf_model import HFModel
from open_lm.evaluation.icl import Request
from open_lm.evaluation.models import context_length, continue_prompts
from open_lm.evaluation.precision import autocast
from open_lm.evaluation.result import Result
from open_lm.evaluation.scorer import ScorerOptions, Shape, plan_batches, score_requests
from open_lm.storage.hub import hub_problem
from open_lm.tokenizer import Tokenizer

SHARES = ("acc", "acc_norm", "exact_match")
"""Metrics that are shares of questions; others don't fit a table of accuracies."""
MAX_NEW_TOKENS = 256
"""Where a task doesn't say; lm-eval's number."""


class HarnessModel(TemplateLM):  # type: ignore[misc, unused-ignore]
    """Our model as lm-eval wants one."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, options: ScorerOptions, max_length: int | None = None, begin: str | None = None
    ):
        """max_length: in place of the model's; begin: token before a text without context, where the tokenizer is known to name one."""
        super().__init__()
        self.model, self.text, self.options = model, tokenizer, options
        self.max_length = max_length or context_length(model)
        [empty] = tokenizer.encode_batch([""], special_tokens=True)
        named = tokenizer.token_id(begin) if begin else None
        self._prefix = named if named is not None else empty[0] if empty else tokenizer.eot_id

    @property
    def eot_token_id(self) -> int:
        """Ends a text."""
        return self.text.eot_id

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text without context."""
        return self._prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; what the tokenizer puts around one is added unless it is told not to, or is there already."""
        if add_special_tokens is None:
            return self._encode([string])[0]
        [ids] = self.text.encode_batch([string], special_tokens=add_special_tokens)
        return ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts, tokenised together."""
        begin = self.text.decode([self._prefix])
        bare = iter(self.text.encode_batch([text for text in texts if text.startswith(begin)]))
        begun = iter(self.text.encode_batch([text for text in texts if not text.startswith(begin)], special_tokens=True))
        return [next(bare if text.startswith(begin) else begun) for text in texts]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the greedy one. All texts are tokenised together."""
        pairs = [request.args for request in requests]
        empty = [continuation for context, continuation in pairs if not context]
        afters = iter(self.text.encode_batch(empty))
        moved = [_move_space(*pair) for pair in pairs if pair[0]]
        wholes = iter(self._encode([context + continuation for context, continuation in moved]))
        contexts = list(dict.fromkeys(context for context, _ in moved))
        before = dict(zip(contexts, self._encode(contexts), strict=True))
        lefts = iter(before[context] for context, _ in moved)
        encoded = []
        for pair in pairs:
            if pair[0]:
                left, whole = next(lefts), next(wholes)
                encoded.append((pair, left, whole[len(left) :]))
            else:
                ids = next(afters)
                encoded.append((pair, ids[:1], ids[1:]) if ids[:1] == [self._prefix] else (pair, [self._prefix], ids))
        return self._loglikelihood_tokens(encoded)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        asked = [self._request(context, continuation) for _, context, continuation in requests]
        return [(-score.loss, score.greedy) for score in score_requests(self.model, asked, self.options)]

    def _request(self, context: list[int], continuation: list[int]) -> Request:
        ids = (context + continuation)[-(self.max_length + 1) :]
        return Request(ids, max(1, len(ids) - len(continuation)))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in windows that share no token but the first."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            cut = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            mine = [utils.make_disjoint_window(window) for window in cut]
            windows += [(None, *window) for window in mine]
            counts.append(len(mine))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy text of each request, up to its first stop string; those of equal settings are generated together."""
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, (_, settings) in enumerate(request.args for request in requests):
            groups.setdefault(self._settings(dict(settings)), []).append(index)
        texts: dict[int, str] = {}
        for (count, stops), members in groups.items():
            contexts = self._encode([requests[i].args[0] for i in members])
            prompts = [ids[-(self.max_length - count) :] or [self._prefix] for ids in contexts]
            for batch in plan_batches([Shape(len(ids) + count) for ids in prompts], self.options.generated_tokens):
                found = self._generate([prompts[i] for i in batch], count, stops)
                texts.update({members[i]: text for i, text in zip(batch, found, strict=True)})
        return [texts[index] for index in range(len(requests))]

    def _settings(self, given: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
        """Most new tokens, and the stop strings."""
        settings = normalize_gen_kwargs(given, MAX_NEW_TOKENS)
        if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
            raise ValueError(f"--tasks: generation with {settings}: this backend generates greedily")
        count = int(settings["max_gen_toks"])
        if self.max_length - count < 1:
            raise ValueError(f"--tasks: {count} new tokens leave no room for a prompt in the model's {self.max_length}")
        return count, tuple(handle_stop_sequences(list(settings.get("until") or []), eos=self.text.decode([self.eot_token_id])))

    def _generate(self, prompts: Sequence[list[int]], count: int, stops: Sequence[str]) -> list[str]:
        marks = [mark for mark in stops if mark]

        def stop(ids: list[int]) -> bool:
            text = self.text.decode(ids, skip_special_tokens=True)
            return any(mark in text for mark in marks)

        ends = self.model.own_ends if isinstance(self.model, HFModel) else ()
        with autocast(next(self.model.parameters()).device, self.options.precision):
            new = continue_prompts(self.model, prompts, count, self.eot_token_id, stop, ends)
        texts = [self.text.decode(ids, skip_special_tokens=True) for ids in new]
        return [str(postprocess_generated_text(generation=text, stop=marks, think_end_token=None)) for text in texts]


def _move_space(context: str, continuation: str) -> tuple[str, str]:
    """The white space that ends a context begins its continuation, as lm-eval wants it."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def score_harness_tasks(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    options: ScorerOptions,
    *,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    begin: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    done: Callable[[str, dict[str, Result]], None] = lambda task, results: None,
) -> dict[str, Result]:
    """Results by `<task>/<n>-shot`, and `<task>:<metric>[,<filter>]/<n>-shot` for each further share of a task.

    Args:
        include_path: folder with task YAMLs of one's own.
        num_fewshot: in place of the tasks' own numbers.
        max_length, begin: see `HarnessModel`.
        tell: hears of tasks that report no share of questions.
        done: hears of each task.

    Raises:
        ValueError: no such task, or data that can't be had.
    """
    problem = hub_problem()
    if problem and not include_path and not _has_data():
        raise ValueError(_without_hub(tasks, problem))
    datasets.disable_progress_bars()
    manager = _task_manager(tuple(tasks), include_path)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"--tasks {','.join(unknown)}: lm-eval has no such task; `lm-eval ls tasks` lists them, --include-path adds a folder"
        )
    scored, results = HarnessModel(model, tokenizer, options, max_length, begin), dict[str, Result]()
    try:
        with _hub_left_alone(problem is not None):
            for task in tasks:
                start = time.perf_counter()
                try:
                    told = simple_evaluate(
                        scored,
                        tasks=[task],
                        num_fewshot=num_fewshot,
                        limit=limit,
                        task_manager=manager,
                        bootstrap_iters=0,
                        log_samples=False,
                        verbosity="ERROR",
                    )
                except (ValueError, TypeError, KeyError) as error:  # of a task's YAML with unknown keys, splits or values
                    why = " ".join(str(error).split())[:200]
                    raise ValueError(f"--tasks {task}: lm-eval can't score it ({why}); correct its YAML") from error
                assert told is not None
                found = _results(told, time.perf_counter() - start, tell)
                results |= found
                done(task, found)
    except OSError as error:
        raise ValueError(_without_hub(tasks, f"{problem or 'the data'}: {' '.join(str(error).split())[:200]}")) from None
    return results


def _without_hub(tasks: Sequence[str], why: str) -> str:
    return f"--tasks {','.join(tasks)}: the data can't be had ({why}); set HF_ENDPOINT to a mirror, or give --include-path, or --eval-yaml"


def _has_data() -> bool:
    """Whether any data set of the hub is cached."""
    places = (Path(huggingface_hub.constants.HF_HUB_CACHE).glob("datasets--*"), Path(datasets.config.HF_DATASETS_CACHE).glob("*___*"))
    return any(True for place in places for _ in place)


@contextmanager
def _hub_left_alone(asked: bool) -> Iterator[None]:
    """While open and `asked` for, data are looked for in the cache alone: their clients try for half a minute for each."""
    places: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = asked or place.HF_HUB_OFFLINE
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


@functools.lru_cache(maxsize=1)
def _task_manager(tasks: tuple[str, ...], include_path: str | None) -> TaskManager:
    """lm-eval's list of tasks; without its 14,000 own ones, which take ten seconds to list, where a folder of one's own has them all."""
    if include_path:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if set(tasks) <= set(manager.all_subtasks):
            return manager
    return TaskManager(include_path=include_path)


def _results(told: Any, seconds: float, tell: Callable[[str], None]) -> dict[str, Result]:
    """Results by name; tasks that report no share of questions are told with their numbers."""
    results: dict[str, Result] = {}
    for task, numbers in told["results"].items():
        if task not in told["n-samples"]:
            continue  # a group, whose tasks stand for themselves
        shares = {key: value for key, value in numbers.items() if key.partition(",")[0] in SHARES}
        if not shares:
            others = [f"{key.partition(',')[0]} {value:.6g}" for key, value in numbers.items() if isinstance(value, float)]
            tell(f"{task}: {', '.join(others) or 'nothing'}; no share of questions, so it is not in the table")
        for number, (key, value) in enumerate(shares.items()):
            label = task if number == 0 else f"{task}:{key.removesuffix(',none')}"
            name = f"{label}/{told['n-shot'].get(task, 0)}-shot"
            results[name] = Result(float(value), int(told["n-samples"][task]["effective"]), seconds / len(told["results"]))
    return results
