"""Schedules and the length of a run are pure arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_lm.params import BatchParams, OptimizerParams
from open_lm.train.schedule import RunLength, global_batch_size, make_schedule, run_length, warmup_steps


def test_warmup_then_cosine_ends_just_above_its_end() -> None:
    lr = make_schedule(OptimizerParams(lr=1.0, warmup=4, lr_cooldown_end=0.1), RunLength(10, 4, 1))
    assert [lr(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr(4) == 1.0
    assert lr(22) == pytest.approx(0.55)
    assert 0.1 < lr(39) < 0.102
    assert lr(40) == pytest.approx(0.1)


def test_the_cosine_never_goes_below_force_min_lr() -> None:
    lr = make_schedule(OptimizerParams(lr=1.0, warmup=0, force_min_lr=0.3), RunLength(10, 1, 1))
    assert min(lr(s) for s in range(10)) == 0.3


def test_const_and_skip_scheduler() -> None:
    assert make_schedule(OptimizerParams(lr=2.0, warmup=2, lr_scheduler="const"), RunLength(10, 1, 1))(0) == 1.0
    assert make_schedule(OptimizerParams(lr=2.0, warmup=2, lr_scheduler="const"), RunLength(10, 1, 1))(9) == 2.0
    assert make_schedule(OptimizerParams(lr=2.0, warmup=2, skip_scheduler=True), RunLength(10, 1, 1))(0) == 2.0


def test_const_cooldown_falls_over_the_last_epochs() -> None:
    params = OptimizerParams(lr=1.0, warmup=0, lr_scheduler="const-cooldown", epochs_cooldown=2, lr_cooldown_power=2.0)
    lr = make_schedule(params, RunLength(10, 5, 1))
    assert lr(29) == lr(30) == 1.0
    assert lr(40) == pytest.approx(0.25)
    assert lr(50) == 0.0


def test_a_warmup_longer_than_the_run_never_ends() -> None:
    lr = make_schedule(OptimizerParams(lr=1.0, warmup=100), RunLength(10, 1, 1))
    assert lr(9) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("asked", "steps", "before", "expected"),
    [
        (None, 9, None, 1),
        (None, 1010, None, 21),
        (None, 2_000_000, None, 10_000),
        ("2.5%", 2_000_000, None, 50_000),
        ("0%", 9, None, 0),
        (10_000, 9, None, 10_000),
        (None, 2_000_000, 7, 7),
        ("1%", 1000, 7, 10),
        (5, 1000, 7, 5),
    ],
)
def test_the_warmup_is_the_steps_or_the_share_asked_for_else_short(
    asked: int | str | None, steps: int, before: int | None, expected: int
) -> None:
    assert warmup_steps(asked, RunLength(steps, 1, 1), before) == expected


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 50))
def test_epochs_end_where_openlms_do(sequences: int, epochs: int, batch: int) -> None:
    length = RunLength(sequences, epochs, batch)
    for step in range(length.total_steps + 1):
        done = max((e + 1 for e in range(epochs) if sequences * (e + 1) // batch <= step), default=0)
        assert length.epochs_done(step) == done
    assert length.epochs_done(length.total_steps) == epochs


def test_an_epoch_counts_tokens() -> None:
    assert run_length(BatchParams(epochs=3), 1000, 100, 4).sequences_per_epoch == 10
    with pytest.raises(ValueError, match="it counts tokens"):
        run_length(BatchParams(), 99, 100, 4)
    with pytest.raises(ValueError, match="less than one batch of 64"):
        run_length(BatchParams(epochs=2), 1000, 100, 64)


def test_batch_size_is_per_process_and_split_by_accumulation() -> None:
    assert global_batch_size(BatchParams(), 2) == 64
    assert global_batch_size(BatchParams(batch_size=3), 4) == 12
    assert global_batch_size(BatchParams(batch_size=3, global_batch_size=12, accum_freq=3), 4) == 12
    with pytest.raises(ValueError, match="give one of them"):
        global_batch_size(BatchParams(batch_size=3, global_batch_size=13), 4)
    with pytest.raises(ValueError, match="use 1, 2, 5, 10 processes"):
        global_batch_size(BatchParams(global_batch_size=10), 4)
    with pytest.raises(ValueError, match="--accum-freq 4: must divide the 6"):
        global_batch_size(BatchParams(global_batch_size=12, accum_freq=4), 2)
