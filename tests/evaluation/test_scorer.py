"""Scores of requests equal those of the plain model, however the requests are batched."""

from __future__ import annotations

import copy
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
    loss = F.cross_entropy(logits, targets)
    return Score(float(torch.exp(loss)), bool((logits.argmax(-1) == targets).all()), float(loss) * len(targets))


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_scores_equal_the_plain_models_in_the_order_of_the_requests(model: Transformer, batch_tokens: int) -> None:
    requests = some_requests(20)
    found = score_requests(model, requests, ScorerOptions(batch_tokens))
    for score, request in zip(found, requests, strict=True):
        plain = plain_score(model, request)
        assert score.perplexity == pytest.approx(plain.perplexity, rel=1e-4)
        assert score.loss == pytest.approx(plain.loss, rel=1e-4)


def branching_requests(n: int) -> list[Request]:
    """Questions of several choices after one context; some choices of one token, some equal, some contexts short."""
    rng = random.Random(1)
    requests = []
    for _ in range(n):
        context = [rng.randrange(300) for _ in range(rng.randint(1, 30))]
        choices = [[rng.randrange(9) for _ in range(rng.choice([1, 1, 2, 5]))] for _ in range(rng.randint(1, 5))]
        requests += [Request(context + choice, len(context)) for choice in choices]
    return requests


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_choices_after_a_shared_context_score_as_they_do_alone(model: Transformer, batch_tokens: int) -> None:
    requests = branching_requests(12)
    assert any(len(group.members) > 1 for group in group_requests(requests, share=True))
    for score, request in zip(score_requests(model, requests, ScorerOptions(batch_tokens)), requests, strict=True):
        plain = plain_score(model, request)
        assert score.perplexity == pytest.approx(plain.perplexity, rel=1e-4)
        assert score.greedy == plain.greedy


def test_openlm_defect_30_a_batch_is_as_wide_as_its_longest_request(model: Transformer) -> None:
    widths: list[tuple[int, ...]] = []
    handle = model.tok_embeddings.register_forward_pre_hook(lambda module, inputs: widths.append(tuple(inputs[0].shape)))
    requests = [Request([index, *range(100, 100 + length)], length) for index, length in enumerate((30, 3, 29, 4, 2))]
    score_requests(model, requests, ScorerOptions(batch_tokens=64))
    handle.remove()
    assert widths == [(2, 30), (3, 4)]  # the last token of each is only predicted


def test_a_shared_context_is_read_once(model: Transformer) -> None:
    read = []
    handle = model.tok_embeddings.register_forward_pre_hook(lambda module, inputs: read.append(tuple(inputs[0].shape)))
    context = list(range(30))
    score_requests(model, [Request([*context, a, b], 30) for a, b in ((7, 8), (9, 8), (9, 4))], ScorerOptions())
    score_requests(model, [Request([*context, a], 30) for a in range(4)], ScorerOptions())
    handle.remove()
    assert read == [(1, 30), (3, 1), (1, 30)]  # answers of one token need no second pass


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=20), st.booleans())
def test_groups_hold_every_request_once_and_begin_alike(rows: list[list[int]], share: bool) -> None:
    requests = [Request(ids, 1) for ids in rows]
    groups = group_requests(requests, share)
    assert [index for group in groups for index in group.members] == list(range(len(rows)))
    for prefix, members in groups:
        assert len(members) == 1 or (share and prefix > 0)
        assert all(rows[i][:-1][:prefix] == rows[members[0]][:prefix] for i in members)


def test_greedy_means_that_every_token_is_the_first_choice(model: Transformer) -> None:
    from open_lm.generation import generate

    prompt = [5, 6, 7]
    (new,) = generate(model, [prompt], max_new_tokens=3)
    wrong = [*new[:2], (new[2] + 1) % 300]
    found = score_requests(model, [Request(prompt + new, 3), Request(prompt + wrong, 3)], ScorerOptions())
    assert [score.greedy for score in found] == [True, False]


def test_an_empty_continuation_has_no_perplexity_and_counts_as_greedy(model: Transformer) -> None:
    (score,) = score_requests(model, [Request([3], 1)], ScorerOptions())
    assert math.isnan(score.perplexity) and score.greedy and score.loss == 0


def test_equal_requests_are_read_once_and_tie(model: Transformer) -> None:
    read = []
    handle = model.tok_embeddings.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].numel()))
    a, b = Request([5, 6, 7, 8], 2), Request([5, 6, 9, 9], 2)
    scores = score_requests(model, [a, b, a, Request([5, 6, 7, 8], 3), b], ScorerOptions(1))
    alone = score_requests(model, [a, b, Request([5, 6, 7, 8], 3)], ScorerOptions(1))
    handle.remove()
    assert sum(read) % 2 == 0 and sum(read[: len(read) // 2]) == sum(read) // 2
    assert scores[0] == scores[2] and scores[1] == scores[4] and scores[3].loss < scores[0].loss
    assert [scores[0], scores[1], scores[3]] == alone


def test_a_loss_too_large_for_a_perplexity_is_known_all_the_same(model: Transformer) -> None:
    loud = copy.deepcopy(model)
    with torch.no_grad():
        loud.output.weight.mul_(1000)
    requests = some_requests(12)
    found = score_requests(loud, requests, ScorerOptions())
    assert any(math.isinf(score.perplexity) for score in found)
    for score, request in zip(found, requests, strict=True):
        assert score.loss == pytest.approx(plain_score(loud, request).loss, rel=1e-4)


def test_bfloat16_is_near_fp32_but_not_equal(model: Transformer) -> None:
    requests = some_requests(5)
    exact, rough = (score_requests(model, requests, ScorerOptions(precision=p)) for p in ("fp32", "amp_bfloat16"))  # type: ignore[arg-type]
    for a, b in zip(exact, rough, strict=True):
        assert a.perplexity != b.perplexity
        assert math.log(a.perplexity) == pytest.approx(math.log(b.perplexity), abs=0.5)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 5), st.integers(0, 30)), max_size=40), st.integers(1, 200))
def test_batches_hold_every_shape_once_within_the_limit(values: list[tuple[int, int, int]], batch_tokens: int) -> None:
    shapes = [Shape(*value) for value in values]
    batches = plan_batches(shapes, batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(shapes)))
    for batch in batches:
        ours = [shapes[i] for i in batch]
        prefixes, branches = len(ours) * max(s.prefix for s in ours), sum(s.rows for s in ours) * max(s.branch for s in ours)
        assert len(batch) == 1 or max(prefixes, branches) <= batch_tokens
