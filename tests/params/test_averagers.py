"""Text of --averagers."""

from __future__ import annotations

import pytest

from open_lm.params import UserError, parse_params
from open_lm.params.averagers import AveragerSpec, parse_averagers


def test_parts_are_method_parameter_and_freq() -> None:
    assert parse_averagers("ema_0.999_1, poly_16_10") == (
        AveragerSpec("ema_0.999_1", "ema", 0.999, 1),
        AveragerSpec("poly_16_10", "poly", 16.0, 10),
    )
    assert parse_averagers(None) == ()


def test_what_is_left_out_is_as_in_openlm() -> None:
    assert [(s.name, s.parameter, s.freq) for s in parse_averagers("ema,poly,ema_0.5,poly_2")] == [
        ("ema", 0.99, 1),
        ("poly", 0.0, 1),
        ("ema_0.5", 0.5, 1),
        ("poly_2", 2.0, 1),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("swa_1_1", "'swa_1_1' is no averager; use ema_<gamma>_<freq>"),
        ("ema_0.9_1_1", "is no averager"),
        ("ema_x_1", "has no number in its place"),
        ("ema_nan_1", "has no number in its place"),
        ("poly_-1_1", "has no number in its place"),
        ("poly_1_0.5", "has no number in its place"),
        ("ema_0.9_1/../x", "has no number in its place"),
        ("ema_1_1", "give a gamma from 0 to below 1"),
        ("poly_16_0", "give 1 or more steps between updates, e.g. poly_16_1"),
        ("ema_0.9_1,ema_0.9_1", "'ema_0.9_1' is there twice"),
        ("ema_0.9_1,", "'' is no averager"),
    ],
)
def test_mistakes_are_told_with_the_remedy(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_params(["--train-data", "x.tar", "--averagers", text])
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"--averagers {text}: ")
    assert words in caught.value.problems[0]


def test_a_loss_of_averages_needs_averages() -> None:
    with pytest.raises(UserError, match="--log-avg-model-training-loss: only with --averagers"):
        parse_params(["--train-data", "x.tar", "--log-avg-model-training-loss", "5"])
