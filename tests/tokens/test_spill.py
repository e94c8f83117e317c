"""Spills: what was written comes back by bucket; a damaged or half-written one is noticed."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_lm.tokens.pieces import PIECE, Packer
from open_lm.tokens.spill import OpenFiles, Spill, SpillWriter, is_whole, spill_path, spills_in, unit_of


def written(folder, length, lengths, buckets, seed, capacity=4, unit=(0, 0)):
    """A spill of documents; returns its path and, by bucket, its sequences with their pieces."""
    path = spill_path(folder, *unit)
    rng = np.random.default_rng(seed)
    writer, packer = SpillWriter(path, buckets), Packer(length, np.uint16, capacity)
    by_bucket = {bucket: [] for bucket in range(buckets)}

    def spill(rows):
        bucket_of = rng.integers(0, buckets, len(rows.tokens))
        for i, bucket in enumerate(bucket_of):
            begin = rows.ends[i - 1] if i else 0
            by_bucket[int(bucket)].append((rows.tokens[i].tolist(), rows.pieces[begin : rows.ends[i]].tolist()))
        writer.add(rows, bucket_of)

    pieces = np.zeros(len(lengths), PIECE)
    pieces["length"], pieces["at"] = lengths, np.arange(len(lengths))
    for rows in packer.add(np.arange(sum(lengths)).astype(np.uint16), pieces):
        spill(rows)
    rows, tail, tail_pieces = packer.finish()
    spill(rows)
    writer.close(tail, tail_pieces, {"documents": len(lengths)})
    return path, by_bucket, (tail.tolist(), tail_pieces.tolist())


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_buckets_come_back_in_order_with_their_pieces(tmp_path, lengths, length, buckets, seed):
    path, by_bucket, tail = written(tmp_path, length, lengths, buckets, seed)
    with OpenFiles(most=1) as files:
        spill = Spill(path, length, files)
        assert is_whole(path)
        assert spill.counts == {"documents": len(lengths)}
        assert spill.bucket_sizes(buckets).tolist() == [len(by_bucket[b]) for b in range(buckets)]
        tokens, pieces = spill.tail()
        assert (tokens.tolist(), pieces.tolist()) == tail
        for bucket, expected in by_bucket.items():
            found = []
            for segment in spill.segments:
                start, stop = spill.bucket(segment, bucket)
                ends = spill.piece_ends(segment, start, stop)
                rows = np.empty((stop - start, length), np.uint16)
                spill.read_rows(segment, start, rows)
                for i, row in enumerate(rows):
                    found.append((row.tolist(), spill.read_pieces(segment, int(ends[i]), int(ends[i + 1])).tolist()))
            assert found == expected


@pytest.mark.parametrize("where", [0, 40, -1, -30])
def test_one_changed_byte_is_noticed(tmp_path, where):
    path, _, _ = written(tmp_path, 5, [7, 30, 4], 2, 0)
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    assert not is_whole(path)


def test_a_cut_off_spill_is_not_whole(tmp_path):
    path, _, _ = written(tmp_path, 5, [7, 30, 4], 2, 0)
    path.write_bytes(path.read_bytes()[:-10])
    assert not is_whole(path)
    with OpenFiles() as files, pytest.raises(ValueError, match="is not a whole spill"):
        Spill(path, 5, files)


def test_an_abandoned_spill_leaves_nothing(tmp_path):
    writer = SpillWriter(spill_path(tmp_path, 0, 0), 1)
    writer.abandon(RuntimeError())
    assert list(tmp_path.iterdir()) == []


def test_spills_are_listed_in_the_order_of_their_units(tmp_path):
    units = [(10, 0), (2, 11), (2, 9), (0, 0)]
    for unit in units:
        written(tmp_path, 5, [3], 1, 0, unit=unit)
    assert [unit_of(path) for path in spills_in(tmp_path)] == sorted(units)
