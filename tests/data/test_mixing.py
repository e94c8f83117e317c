import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_lm.data.mixing import BLOCK, Mix, whole_shares

weights = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)


@given(weights)
def test_shares_fill_a_block_with_at_least_one_each(ws: list[float]) -> None:
    shares = whole_shares(ws)
    assert sum(shares) == BLOCK and min(shares) >= 1


@given(weights, st.sampled_from([0.5, 3.0, 1024.0]))
def test_openlm_defect_6_mix_weights_need_not_be_normalised(ws: list[float], factor: float) -> None:
    assert whole_shares([w * factor for w in ws]) == whole_shares(ws)


def test_shares_are_the_nearest_whole_ones() -> None:
    assert whole_shares([1, 1, 1]) == (342, 341, 341)
    assert whole_shares([0.25, 0.75]) == (256, 768)
    assert whole_shares([1e-9, 1, 1]) == (1, 512, 511)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="--train-data-mix-weights"):
        whole_shares([1.0, weight])


def test_openlm_defect_6_each_block_of_a_stream_has_the_exact_shares_in_another_order() -> None:
    mix = Mix(seed=0, streams=3, shares=(100, 900, 24))
    blocks = [mix.split(k, b * BLOCK, (b + 1) * BLOCK)[0] for k in range(3) for b in range(3)]
    for labels in blocks:
        assert np.bincount(labels, minlength=3).tolist() == [100, 900, 24]
    assert len({labels.tobytes() for labels in blocks}) == len(blocks)


mixes = st.builds(lambda ws, streams, seed: Mix(seed, streams, whole_shares(ws)), weights, st.integers(1, 6), st.integers(0, 5))


@settings(deadline=None, max_examples=30)
@given(mixes, st.integers(0, 3000), st.integers(1, 1500), st.data())
def test_any_piece_of_a_stream_is_cut_from_the_whole(mix: Mix, start: int, count: int, data: st.DataObject) -> None:
    stream = data.draw(st.integers(0, mix.streams - 1))
    sources, positions = mix.split(stream, 0, start + count)
    piece = mix.split(stream, start, start + count)
    assert (piece[0] == sources[start:]).all() and (piece[1] == positions[start:]).all()
    for source in range(len(mix.shares)):
        assert (positions[sources == source] == np.arange((sources == source).sum())).all()


@settings(deadline=None, max_examples=30)
@given(mixes, st.data())
def test_counting_by_arithmetic_is_counting(mix: Mix, data: st.DataObject) -> None:
    numbers = 2 * BLOCK * mix.streams
    number, source = data.draw(st.integers(0, numbers - 1)), data.draw(st.integers(0, len(mix.shares) - 1))
    labels = np.stack([mix.split(k, 0, 2 * BLOCK)[0] for k in range(mix.streams)], axis=1).ravel()  # by number
    mine = np.flatnonzero(labels == source)
    expected = np.bincount(mine[mine < number] % mix.streams, minlength=mix.streams)
    assert mix.counts_before(source, number).tolist() == expected.tolist()
    place = data.draw(st.integers(0, len(mine) - 1))
    assert mix.number_of(source, place) == mine[place]
    assert mix.place(int(mine[place])) == place
