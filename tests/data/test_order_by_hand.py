"""docs/data.md says enough to recompute a batch: done here with Python's integers alone, from the page and not from the code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from open_lm.data.mixing import Mix, whole_shares
from open_lm.data.plan import Plan, Source

M64 = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def key(seed: int, purpose: str, *values: int) -> int:
    state = int.from_bytes(hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8).digest(), "little")
    for value in values:
        state = mix(state ^ mix(value + GAMMA & M64))
    return state


def bits(one_key: int, i: int) -> int:
    return mix(one_key + (i + 1) * GAMMA & M64)


def shuffled(one_key: int, items: range) -> list[int]:
    return sorted(items, key=lambda i: bits(one_key, i))


def by_hand(p: Plan, last: int) -> list[tuple[int, int, int]]:
    """Source, shard and row of the numbers up to `last`, as docs/data.md counts them."""
    seed, streams, shares = p.mix.seed, p.streams, p.mix.shares
    window = max(1, p.shuffle_window // (streams * len(p.sources)))
    deck = [s for s, share in enumerate(shares) for _ in range(share)]
    orders: dict[tuple[int, int], list[int]] = {}

    def source_of(g: int) -> int:
        t, k = divmod(g, streams)
        if (k, t // 1024) not in orders:
            orders[k, t // 1024] = shuffled(key(seed, "mix", k, t // 1024), range(1024))
        return deck[orders[k, t // 1024][t % 1024]] if len(shares) > 1 else 0

    far = last + 1
    while any(sum(source_of(g) == s for g in range(far)) < one.total for s, one in enumerate(p.sources)):
        far *= 2
    numbers = [[g for g in range(2 * far) if source_of(g) == s] for s in range(len(shares))]
    found = []
    for g in range(last + 1):
        s, k = source_of(g), g % streams
        rows = [int(n) for n in p.sources[s].rows]
        if p.replacement:
            i = numbers[s].index(g)
            i = sum(n % streams == k for n in numbers[s][:i])
            i = shuffled(key(seed, "window", s, k, 0), range(i // window * window, (i // window + 1) * window))[i % window]
            draw = key(seed, "draw", s, k, i // 1024)
            ends = np.cumsum(np.array(rows) * p.sources[s].factors)
            shard = int(np.argmax(ends > (bits(draw, 0) >> 11) * 2.0**-53 * ends[-1]))
            found.append((s, shard, (bits(draw, 1) % rows[shard] + i % 1024) % rows[shard]))
            continue
        place, total = numbers[s].index(g), sum(rows)
        index = place // total
        of_pass = numbers[s][index * total : (index + 1) * total]
        mine = [n for n in of_pass if n % streams == k]
        before = sum(n % streams < k for n in of_pass)
        i = mine.index(g)
        first = i // window * window
        i = shuffled(key(seed, "window", s, k, index), range(first, min(first + window, len(mine))))[i - first]
        laid = [(shard, row) for shard in shuffled(key(seed, "pass", s, index), range(len(rows))) for row in range(rows[shard])]
        found.append((s, *laid[before + i]))
    return found


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), min_size=1, max_size=2),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 40),
    st.booleans(),
)
def test_a_batch_can_be_recomputed_from_the_page(rows: list[list[int]], streams: int, seed: int, window: int, replacement: bool) -> None:
    sources = tuple(Source("x", tuple(map(str, range(len(r)))), np.array(r, dtype=np.int64), np.arange(1.0, len(r) + 1)) for r in rows)
    p = Plan(sources, Mix(seed, streams, whole_shares([s.total for s in sources])), replacement, window, seq_len=8)
    assert [p.locate(g) for g in range(120)] == by_hand(p, 119)


def test_the_picture_of_the_page(repo: Path) -> None:
    p = Plan((Source("x", ("0", "1", "2"), np.array([3, 2, 4]), np.ones(3)),), Mix(0, 2, (1024,)), False, 6, seq_len=8)
    numbers = " ".join(f"{shard},{row}" for _, shard, row in map(p.locate, range(9)))
    assert f"shard, row of number g    {numbers} " in (repo / "docs/data.md").read_text()
    assert by_hand(p, 8) == [p.locate(g) for g in range(9)]
