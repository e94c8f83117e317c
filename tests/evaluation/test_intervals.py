"""Bootstrap bounds of a validation loss: OpenLM's population, resamples and percentiles, whatever the batches and the processes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from open_lm.evaluation.intervals import IntervalOptions, LossPoints, bootstrap_interval
from open_lm.evaluation.validation import validate
from open_lm.model.transformer import Transformer

BOTH = IntervalOptions(sequences=True, tokens=True, iterations=2000)


@pytest.fixture
def tokens() -> Tensor:
    rows = torch.randint(0, 300, (12, 17), generator=torch.Generator().manual_seed(1))
    rows[3, 5:] = -1
    return rows


def openlms_bounds(points: np.ndarray, population: int | None, iterations: int) -> tuple[float, float]:
    rng = np.random.default_rng(5)
    size = min(population or len(points), len(points))
    means = [rng.choice(points, size=size).mean() for _ in range(iterations)]
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


@pytest.mark.parametrize("population", [None, 50, 5000])
def test_bounds_are_percentiles_of_the_means_of_resamples(population: int | None) -> None:
    points = np.random.default_rng(0).gamma(2.0, 1.0, 400)
    expected = openlms_bounds(points, population, 4000)
    found = bootstrap_interval(torch.from_numpy(points), population, 4000)
    assert found == pytest.approx(expected, abs=0.06 * (expected[1] - expected[0]))
    assert found[0] < points.mean() < found[1]


def test_a_smaller_population_gives_wider_bounds_as_its_root() -> None:
    points = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    (a, b), (c, d) = bootstrap_interval(points, None, 4000), bootstrap_interval(points, 10, 4000)
    assert (d - c) / (b - a) == pytest.approx(10, rel=0.15)


def test_draws_in_parts_are_the_whole_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.full((100,), 3.0)
    monkeypatch.setattr("open_lm.evaluation.intervals._DRAWS", 32)
    assert bootstrap_interval(points, None, 10) == (3.0, 3.0)


def test_long_draws_tell_that_they_go_on() -> None:
    calls: list[None] = []
    bootstrap_interval(torch.rand(10), None, 1000, progress=lambda: calls.append(None))
    assert len(calls) > 10


def test_the_order_of_the_points_does_not_matter() -> None:
    points = torch.randn(50, generator=torch.Generator().manual_seed(3))
    assert bootstrap_interval(points, None, 100) == bootstrap_interval(points.flip(0), None, 100)


def test_points_are_means_of_sequences_and_unmasked_tokens(model: Transformer, tokens: Tensor) -> None:
    result = validate(model, [tokens[:5], tokens[5:]], intervals=BOTH)
    assert result.sequence_interval is not None and result.token_interval is not None
    losses, kept = LossPoints(BOTH), tokens[:, 1:] >= 0
    with torch.no_grad():
        logits = model(tokens[:, :-1].clamp(min=0))
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], ignore_index=-1, reduction="none")
    losses.add(each, kept)
    assert result.sequence_interval == pytest.approx(losses.sequence_interval(), rel=1e-5)
    assert result.token_interval == pytest.approx(losses.token_interval(), rel=1e-5)
    sequence_mean = float((each.sum(1) / kept.sum(1)).mean())
    assert result.sequence_interval[0] < sequence_mean < result.sequence_interval[1]
    assert result.token_interval[0] < result.loss < result.token_interval[1]


def test_openlm_defect_29_fully_masked_sequences_are_no_points(model: Transformer, tokens: Tensor) -> None:
    masked = torch.full_like(tokens, -1)
    with_masked = validate(model, [tokens, masked, torch.cat([tokens[:1], masked])], intervals=BOTH)
    without = validate(model, [tokens, tokens[:1]], intervals=BOTH)
    assert with_masked == without
    assert all(math.isfinite(value) for value in with_masked.as_dict().values() if value is not None)


def test_only_what_is_asked_for_is_computed(model: Transformer, tokens: Tensor) -> None:
    values = validate(model, [tokens], intervals=IntervalOptions(tokens=True, iterations=50)).as_dict()
    assert values["loss_sequences_lower_95"] is None and values["loss_sequences_upper_95"] is None
    assert values["loss_tokens_lower_95"] < values["loss"] < values["loss_tokens_upper_95"]


def _bounds_on_a_process(rank: int, folder: str, losses: Tensor, kept: Tensor) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    points = LossPoints(BOTH)
    points.add(losses[rank::2], kept[rank::2])
    torch.save((points.sequence_interval(), points.token_interval()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_bound_the_points_of_both_also_where_one_has_none(tmp_path: Path) -> None:
    losses, kept = torch.rand(6, 4, generator=torch.Generator().manual_seed(4)), torch.ones(6, 4, dtype=torch.bool)
    kept[1::2] = False
    kept[0, 1:] = False
    losses *= kept
    torch.multiprocessing.spawn(_bounds_on_a_process, (str(tmp_path), losses, kept), nprocs=2)
    alone = LossPoints(BOTH)
    alone.add(losses, kept)
    assert torch.load(tmp_path / "0.pt") == (alone.sequence_interval(), alone.token_interval())
    assert torch.load(tmp_path / "1.pt") == torch.load(tmp_path / "0.pt")
