"""Characters about which gigatoken and `tokenizers` disagree, because they know different versions of Unicode. Pure.

`tokenizers` 0.23 normalises by Unicode 9 and splits words by Unicode 16; gigatoken 0.10 does both by Unicode 17. So they differ about
  - marks with a combining class, and characters with a canonical decomposition or composition, younger than Unicode 9;
  - letters, numbers and marks younger than Unicode 16.
By Unicode's stability rules no other character ever changes these properties. Texts that hold such a young character are left to
`tokenizers`. The table goes up to Unicode 18 where that costs nothing; tests/fast_tokenizer tries every character.
"""

from __future__ import annotations

import functools

import numpy as np

_RANGES = """
7fd 88f 897-89f 8ca-8d3 9fe b53-b54 c3c c5c cdc d3b-d3c eba 1715 1abf-1af0 1df6-1dfa a7ce-a7cf a7d2 a7d4 a7dd-a7f1 a82c ab6c-ab6d
105c9 105d2 105da 105e4 107bb-107bf 10940-10959 10d24-10d27 10d69-10d6d 10eab-10eac 10ec5-10ec7 10ecb-10ecf 10ed9-10efb 10efd-10eff
10f46-10f50 10f82-10f85 11070 1133b 11382-11385 1138b-11391 113b8 113bb 113c2-113c9 113ce-113d0 1145e 11839-1183a 11930 11935 11938
1193d-1193e 11943 119e0 11a34 11a47 11a99 11b0a-11b67 11d42 11d44-11d45 11d97 11db0-11df1 11f41-11f42 1246f 12475-1247f 12550-12686
1611e-16129 1612f 16d63 16d67-16d6a 16ea0-16ed3 16ff0-16ff6 187f8-187ff 18cd6-18cda 18d09-191d2 1b123-1b128 1b168 1d127-1d128
1d250-1d252 1d25b-1d25c 1d25f 1d280-1d281 1d6a6 1df1f-1df24 1df2b-1dfff 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef
1e6c0-1e6ff 2b73a-2b73f 2b81e 2cea2-2cead 323b0-33479 3d000-3fc3f
"""


@functools.cache
def young_characters() -> np.ndarray:
    """bool [0x200000], True at the code points of young characters."""
    table = np.zeros(0x20_0000, bool)
    for item in _RANGES.split():
        first, _, last = item.partition("-")
        table[int(first, 16) : int(last or first, 16) + 1] = True
    return table


def young_positions(raw: bytes) -> np.ndarray:
    """Where young characters begin in UTF-8 text, int64 byte positions."""
    if raw.isascii():
        return np.empty(0, np.int64)
    data = np.frombuffer(raw, np.uint8)
    # Every young character begins with one of five bytes: DF, E0, E1, EA, F0.
    candidates = (data - np.uint8(0xDF)) <= 2
    candidates |= data == 0xEA
    candidates |= data == 0xF0
    at = np.flatnonzero(candidates)
    if len(at) == 0:
        return at
    tail = [(data.take(at + k, mode="clip") & 63).astype(np.uint32) for k in (1, 2, 3)]
    lead = data[at].astype(np.uint32)
    code = (lead & 15) << 12 | tail[0] << 6 | tail[1]
    code = np.where(lead == 0xF0, tail[0] << 12 | tail[1] << 6 | tail[2], code)
    code = np.where(lead == 0xDF, 31 << 6 | tail[0], code)
    return at[young_characters()[code]]
