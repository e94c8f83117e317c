"""Scores of requests equal those of the plain model, however the requests are batched."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from open_lm.evaluation.icl import Request, Score
from open_lm.evaluation.scorer import ScorerOptions, Shape, group_requests, plan_batches, score_requests
from open_lm.model.transformer import Transformer


def some_requests(n: int) -> list[Request]:
    rng = random.Random(0)
    lengths = [(rng.randint(1, 40), rng.randint(1, 6)) for _ in range(n)]
    return [Request([rng.randrange(300) for _ in range(context + rest)], context) for context, rest in lengths]


@torch.no_grad()
def plain_score(model: Transformer, request: Request) -> Score:
    """From the whole logits of the request alone."""
    ids = torch.tensor([request.input_ids])
    logits, targets = model(ids)[0, request.start - 1 : -1], ids[0, request.start :]
    return Score(float(torch.exp(F.cross_entropy(logits, targets))), bool((logits.argmax(-1) == targets).all()))


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_scores_equal_the_plain_models_in_the_order_of_the_requests(model: Transformer, batch_tokens: int) -> None:
    requests = some_requests(20)
    found = score_requests(model, requests, ScorerOptions(batch_tokens))
    for score, request in zip(found, requests, strict=True):
        assert score.perplexity == pytest.approx(plain_score(model, request).perplexity, rel=1e-4)


def test_greedy_means_that_every_token_is_the_first_choice(model: Transformer) -> None:
    from open_lm.generation import generate

    prompt = [5, 6, 7]
    (new,) = generate(model, [prompt], max_new_tokens=3)
    wrong = [*new[:2], (new[2] + 1) % 300]
    found = score_requests(model, [Request(prompt + new, 3), Request(prompt + wrong, 3)], ScorerOptions())
    assert [score.greedy for score in found] == [True, False]


def test_an_empty_continuation_has_no_perplexity_and_counts_as_greedy(model: Transformer) -> None:
    (score,) = score_requests(model, [Request([3], 1)], ScorerOptions())
    assert math.isnan(score.perplexity) and score.greedy


def test_bfloat16_is_near_fp32_but_not_equal(model: Transformer) -> None:
    requests = some_requests(5)
    exact, rough = (score_requests(model, requests, ScorerOptions(precision=p)) for p in ("fp32", "amp_bfloat16"))  # type: ignore[arg-type]
    for a, b in zip(exact, rough, strict=True):
        assert a.perplexity != b.perplexity
        assert math.log(a.perplexity) == pytest.approx(math.log(b.perplexity), abs=0.5)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_request_once_within_the_limit(lengths: list[int], batch_tokens: int) -> None:
    batches = plan_batches([Shape(length) for length in lengths], batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens
