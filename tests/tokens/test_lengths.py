"""A histogram of lengths adds up, keeps what is exact exact, and survives JSON."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_lm.tokens.lengths import EDGES, Lengths

LISTS = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 70_000), st.integers(0, 2**62 - 1)), max_size=50)


def of(lengths: list[int]) -> Lengths:
    return Lengths.of(np.array(lengths, np.int64))


@given(lengths=LISTS, cut=st.integers(0, 50))
def test_parts_add_up_to_the_whole(lengths: list[int], cut: int) -> None:
    lengths = [n // 64 for n in lengths]
    whole = of(lengths)
    assert of(lengths[:cut]) + of(lengths[cut:]) == whole == of(lengths[cut:]) + of(lengths[:cut])
    assert (whole.number, whole.total) == (len(lengths), sum(lengths))
    assert (whole.smallest, whole.largest) == ((min(lengths), max(lengths)) if lengths else (0, 0))
    assert Lengths.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@given(length=st.integers(0, 2**62 - 1))
def test_a_length_is_in_the_bin_around_it(length: int) -> None:
    (low, high, count), *rest = of([length]).bins()
    assert low <= length < high and count == 1 and not rest
    assert of([length]) == Lengths.of(np.array([length], np.uint64))


def test_bins_are_quarter_octaves() -> None:
    assert EDGES[:20] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 23, 27, 32, 39, 46, 54)
    for edge, after in itertools.pairwise(EDGES[8:]):
        assert math.log2(after / edge) == pytest.approx(0.25, abs=0.11)
    assert all(1 << k in EDGES for k in range(62))


@given(lengths=st.lists(st.integers(0, 10**6), min_size=1, max_size=200), share=st.floats(0, 1))
def test_a_quantile_lies_in_the_bin_of_the_true_one(lengths: list[int], share: float) -> None:
    found, true = of(lengths).quantile(share), sorted(lengths)
    low, high = true[math.floor(share * (len(true) - 1))], true[math.ceil(share * (len(true) - 1))]
    ends = [b for b in of(lengths).bins() if b[0] <= low < b[1] or b[0] <= high < b[1]]
    assert ends[0][0] <= found <= ends[-1][1]
    assert (of(lengths).quantile(0), of(lengths).quantile(1)) == (min(lengths), max(lengths))


def test_the_ends_and_small_lengths_are_exact() -> None:
    lengths = of([3, 3, 5, 7, 1000])
    assert [lengths.quantile(q) for q in (0, 0.25, 0.5, 0.75, 1)] == [3, 3, 5, 7, 1000]
    assert of([900, 1000]).quantile(1) == 1000 and of([900, 1000]).quantile(0) == 900
    assert Lengths().quantile(0.5) == 0 and Lengths().mean == 0


def test_what_is_no_histogram_is_refused() -> None:
    for values in ({}, {"bins": {"9": 1}, "total": 9, "smallest": 9, "largest": 9}, {"bins": 3}):
        with pytest.raises(ValueError, match="no histogram of lengths"):
            Lengths.from_json(values)
