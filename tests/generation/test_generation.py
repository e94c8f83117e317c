"""Generation: greedy ids equal the reference, samples are reproducible and within what was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from open_lm.checkpoint.load import load_model
from open_lm.generation import Sampling, choose, generate, next_logits
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads only cost time on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Two layers over 50 ids, random weights, a context of 24."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(hidden_dim=32, n_layers=2, n_heads=2, seq_len=24, vocab_size=50))
    model.init_weights()
    return model.eval()


PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]


def test_greedy_ids_and_logits_equal_the_reference(shared: Path) -> None:
    folder = shared / "data/golden/small_lm"
    golden = json.loads((folder / "expected_generation.json").read_text())
    model, _ = load_model(folder / "epoch_1.pt", str(folder / "model_config.json"))
    prompts = [case["prompt_ids"] for case in golden]
    assert generate(model, prompts, max_new_tokens=24) == [case["greedy_24_ids"] for case in golden]
    top = next_logits(model, prompts).topk(5)
    for case, values, ids in zip(golden, top.values, top.indices, strict=True):
        assert ids.tolist() == case["next_top5_ids"]
        assert values.tolist() == pytest.approx(case["next_top5_logits"], abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_prompts_of_unequal_length_continue_as_they_do_alone(model: Transformer, options: dict[str, Any]) -> None:
    together = generate(model, PROMPTS, max_new_tokens=8, **options)
    assert together[0] == generate(model, PROMPTS[:1], max_new_tokens=8, **options)[0]
    if not options:
        assert together == [generate(model, [prompt], max_new_tokens=8)[0] for prompt in PROMPTS]


def test_samples_repeat_with_the_seed_and_change_with_it(model: Transformer) -> None:
    def sample(seed: int) -> list[list[int]]:
        return generate(model, PROMPTS, max_new_tokens=12, temperature=1.5, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_the_samples_of_one_prompt_differ(model: Transformer) -> None:
    first, second = generate(model, [[1, 2], [1, 2]], max_new_tokens=12, temperature=1.5)
    assert first != second


def test_a_continuation_ends_before_the_end_of_text(model: Transformer) -> None:
    (free,) = generate(model, [[6]], max_new_tokens=12)
    eot = free[4]
    (ended,) = generate(model, [[6]], max_new_tokens=12, eot_id=eot)
    assert ended == free[: free.index(eot)]


def test_a_continuation_ends_where_the_context_is_full(model: Transformer) -> None:
    short, long = generate(model, [[1], list(range(20))], max_new_tokens=10)
    assert (len(short), len(long)) == (10, 4)


def test_top_k_of_one_is_greedy(model: Transformer) -> None:
    greedy = generate(model, PROMPTS, max_new_tokens=8)
    assert generate(model, PROMPTS, max_new_tokens=8, temperature=2.0, top_k=1) == greedy
    assert generate(model, PROMPTS, max_new_tokens=8, temperature=2.0, top_p=1e-6) == greedy


def draws(sampling: Sampling, n: int = 4000) -> torch.Tensor:
    """Shares of ids 0..3 whose probabilities at temperature 1 are .1, .4, .3, .2."""
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    generator = torch.Generator().manual_seed(0)
    return torch.bincount(torch.tensor([choose(logits, sampling, generator) for _ in range(n)]), minlength=4) / n


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(1.0), [0.1, 0.4, 0.3, 0.2]),
        (Sampling(1.0, top_k=2), [0, 4 / 7, 3 / 7, 0]),
        (Sampling(1.0, top_p=0.6), [0, 4 / 7, 3 / 7, 0]),
        (Sampling(1.0, top_p=0.8), [0, 4 / 9, 3 / 9, 2 / 9]),
        (Sampling(0.5), [1 / 30, 16 / 30, 9 / 30, 4 / 30]),
        (Sampling(0.5, top_k=100, top_p=1.0), [1 / 30, 16 / 30, 9 / 30, 4 / 30]),
    ],
)
def test_samples_follow_the_cut_and_tempered_distribution(sampling: Sampling, shares: list[float]) -> None:
    assert draws(sampling).tolist() == pytest.approx(shares, abs=0.03)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[]], {}, "--prompt: prompt 1 is empty"),
        ([[1], list(range(24))], {}, "--prompt: prompt 2 has 24 tokens"),
        ([[50]], {}, "vocabulary of 50"),
        ([[1]], {"temperature": -1.0}, "--temperature -1.0"),
        ([[1]], {"temperature": float("nan")}, "--temperature nan"),
        ([[1]], {"top_k": 0}, "--top-k 0"),
        ([[1]], {"top_p": 1.5}, "--top-p 1.5"),
        ([[1]], {"max_new_tokens": 0}, "--max-new-tokens 0"),
    ],
)
def test_wrong_input_is_named_in_one_line(model: Transformer, prompts: list[list[int]], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        generate(model, prompts, **{"max_new_tokens": 4, **options})
    assert "\n" not in str(error.value)


def test_prompts_are_named_as_the_caller_names_them(model: Transformer) -> None:
    with pytest.raises(ValueError, match=r"^answers: prompt 1 is empty"):
        generate(model, [[]], max_new_tokens=1, named="answers")
