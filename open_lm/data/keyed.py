"""Random bits as a pure function of integers: a key names what they are for, a counter picks one of them.

This is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) used as a counter-based
generator. It is written out here, in wrapping 64-bit arithmetic, because the order of a run must outlive versions and
platforms: numpy guarantees the raw bits of its generators across versions, but not what its `permutation` makes of them.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ROUNDS = 8
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


def _u64(values: int | np.ndarray) -> np.ndarray:
    return np.atleast_1d(np.asarray(values)).astype(np.uint64)


def key(seed: int, purpose: str, *values: int | np.ndarray) -> np.ndarray:
    """Key of a purpose and some non-negative integers or integer arrays, in this order.

    Returns:
        uint64, the broadcast shape of the values, at least [1].
    """
    digest = hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8).digest()
    state = np.array([int.from_bytes(digest, "little")], dtype=np.uint64)
    for value in values:
        state = _mix(state ^ _mix(_u64(value) + _GAMMA))
    return state


def bits(keys: np.ndarray, counters: int | np.ndarray) -> np.ndarray:
    """uint64 random bits, one for each pair of the broadcast keys and counters."""
    return _mix(keys + (_u64(counters) + np.uint64(1)) * _GAMMA)


def permutation(keys: np.ndarray, n: int) -> np.ndarray:
    """A permutation of 0..n-1 for each key: int64, [keys, n]."""
    return np.argsort(bits(keys[:, None], np.arange(n)), axis=1, kind="stable")


def scattered(one_key: np.ndarray, n: int, index: np.ndarray) -> np.ndarray:
    """Where some indexes go in one permutation of 0..n-1, without making all of it.

    A balanced Feistel network on the smallest even number of bits that holds n - 1, applied again until the value is below n
    (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): on average at most four times.

    Args:
        one_key: uint64 [1].
        index: int64, each in 0..n-1.

    Returns:
        int64, the shape of `index`.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    rounds = bits(one_key, np.arange(_ROUNDS))[:, None]
    value = index.astype(np.uint64)
    walking = np.ones(value.shape, dtype=bool)
    while walking.any():
        left, right = value[walking] >> half, value[walking] & mask
        for round_key in rounds:
            left, right = right, left ^ (bits(round_key, right) & mask)
        value[walking] = (left << half) | right
        walking = value >= np.uint64(n)
    return value.astype(np.int64)


def fractions(random_bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) with 53 random bits."""
    return (random_bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
