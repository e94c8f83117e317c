import ast
import contextlib
import gzip
import io
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from open_lm.shards.members import MASKED, decode_member, encode_member

ids16 = hnp.arrays(np.uint16, st.integers(0, 60), elements=st.integers(0, 2**16 - 1))
ids32 = hnp.arrays(np.uint32, st.integers(0, 60), elements=st.integers(0, 2**32 - 1))
vocabulary = hnp.arrays(np.uint32, st.integers(0, 60), elements=st.integers(0, 260_000))
around_the_table = hnp.arrays(np.uint32, st.integers(0, 6), elements=st.integers(999_990, 1_000_010))


def member(fmt: str, rows: np.ndarray) -> bytes:
    return b"".join(bytes(piece) for piece in encode_member(fmt, rows))


@settings(derandomize=True, deadline=None)
@given(st.one_of(ids16, ids32, vocabulary, around_the_table))
def test_txt_is_what_python_prints_of_the_list(ids: np.ndarray) -> None:
    expected = str(ids.tolist()).encode()
    assert member("txt", ids[None]) == expected
    assert member("txt", ids.astype(np.int64)[None]) == expected
    assert gzip.decompress(member("json.gz", ids[None])) == expected


@pytest.mark.parametrize("top", [0, 9, 2**16 - 1, 2**16, 128_255, 10**6 - 1, 10**6, 2**32 - 1])
def test_every_number_of_digits_up_to_the_largest_id(top: int) -> None:
    ids = np.array([top, 0, 9, 10, 99, 100, 999, 1000, 9999, 10000, 65535, top], dtype=np.uint32)
    ids = ids[ids <= top]
    assert member("txt", ids[None]) == str(ids.tolist()).encode()


def test_a_txt_member_of_a_training_sequence_is_a_python_list_of_its_ids() -> None:
    ids = np.random.default_rng(0).integers(0, 50_277, 2049).astype(np.uint16)
    tokens = ast.literal_eval(member("txt", ids[None]).decode())
    assert len(tokens) == 2049 and tokens == ids.tolist() and {type(t) for t in tokens} == {int}


def test_json_gz_is_one_gzip_member_without_name_and_time() -> None:
    data = member("json.gz", np.arange(3000, dtype=np.uint16)[None])
    assert data[:10] == bytes.fromhex("1f8b08000000000000ff")
    assert json.loads(gzip.decompress(data)) == list(range(3000))


@settings(derandomize=True, deadline=None)
@given(hnp.arrays(st.sampled_from([np.uint16, np.uint32]), hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=70)))
def test_npy_is_what_numpy_saves(rows: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    assert member("npy", rows) == buffer.getvalue()
    assert member("npy", rows[::2]) == member("npy", rows[::2].copy())
    read = decode_member("npy", buffer.getvalue(), None)
    assert read.dtype == rows.dtype and np.array_equal(read, rows)


@settings(derandomize=True, deadline=None)
@given(st.sampled_from(["txt", "json.gz"]), hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(MASKED, 2**32 - 1)))
def test_lists_hold_masked_positions_too(fmt: str, ids: np.ndarray) -> None:
    data = member(fmt, ids[None])
    assert np.array_equal(decode_member(fmt, data, None), ids[None])
    if fmt == "json.gz":
        assert [MASKED if t == "<|pad|>" else t for t in json.loads(gzip.decompress(data))] == ids.tolist()
    else:
        assert [MASKED if t == "<|pad|>" else t for t in ast.literal_eval(data.decode())] == ids.tolist()


signed = hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70))


@settings(derandomize=True, deadline=None)
@given(signed)
def test_a_loss_mask_lies_in_the_sign_of_npy(rows: np.ndarray) -> None:
    assert member("npy", rows) == npy(rows)
    read = decode_member("npy", member("npy", rows), None)
    assert read.dtype == np.int32 and np.array_equal(read, rows)


@pytest.mark.parametrize("fmt", ["txt", "json.gz"])
def test_lists_refuse_a_loss_mask_in_one_line(fmt: str) -> None:
    with pytest.raises(ValueError, match=f"^{fmt} can't hold a loss mask .*; give npy$"):
        encode_member(fmt, np.array([[3, ~4]], np.int32))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("extension", "data", "words"),
    [
        ("npy", b"", "no npy header"),
        ("npy", npy(np.zeros((2, 3), np.uint16))[:60], "is no npy array"),
        ("npy", npy(np.zeros((2, 3), np.uint16))[:120], "its header is cut"),
        ("npy", npy(np.zeros((2, 3), np.uint16))[:-1], "has 11 bytes of tokens, its npy header says 12"),
        ("npy", npy(np.zeros((2, 3), np.float32)), "holds float32, not integers"),
        ("npy", npy(np.zeros((2, 3, 4), np.uint16)), "holds an array of shape"),
        ("npy", npy(np.asfortranarray(np.zeros((2, 3), np.uint16))), "C order"),
        ("txt", b"", "is not a list of tokens"),
        ("txt", b"[1, 2", "is not a list of tokens"),
        ("txt", b"[1, 'x']", "'x', which is no token id"),
        ("txt", b"[1, '<|endoftext|>']", "whose id is unknown"),
        ("json", b"{}", "is not a list of tokens"),
        ("json.gz", gzip.compress(b"[1, 2]", mtime=0)[:-1], "is not whole gzip"),
        ("bin", b"", "unknown extension"),
    ],
)
def test_what_holds_no_tokens_is_an_error(extension: str, data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_member(extension, data, None)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_npy_is_a_value_error_or_other_tokens_never_another_error(data: st.DataObject) -> None:
    whole = bytearray(npy(np.arange(12, dtype=np.uint16).reshape(3, 4)))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert decode_member("npy", bytes(whole[: data.draw(st.integers(0, len(whole)))]), None).ndim == 2


def _inflates() -> list[object]:
    found: list[object] = [zlib]
    try:
        from isal import isal_zlib
    except ImportError:
        return found
    return [*found, isal_zlib]


@pytest.mark.parametrize("inflate", _inflates(), ids=lambda module: module.__name__)
def test_gzip_is_read_alike_with_and_without_isal(inflate: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_lm.shards.members._inflate", inflate)
    text = b"[" + b", ".join(b"%d" % i for i in range(3000)) + b"]"
    whole = gzip.compress(text)
    for data in (whole, gzip.compress(text[:70]) + gzip.compress(text[70:]), whole + bytes(100)):
        assert decode_member("json.gz", data, None)[0].tolist() == list(range(3000))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    for damaged in (whole[:-1], whole[:100], bytes(flipped), whole[:-8] + bytes(8), b"", text):
        if damaged:
            with pytest.raises(ValueError, match="^is not whole gzip: "):
                decode_member("json.gz", damaged, None)


_ODD = [
    *("[1, 2x]", "[1.5]", "[]", "[[1]]", "[01]", "[-1, 5]", "[1,]", "[true]", "{}", "[1] x", "[1 2]", " [3,4] ", "[1,\n2]"),
    *("[18446744073709551615]", '["a"]'),
]
_LISTS = st.lists(st.integers(-1, 1 << 40), max_size=50).map(str)


@given(st.one_of(st.sampled_from(_ODD), _LISTS, st.text("[]0123456789-, '<|pad>e.x\n", max_size=40)))
def test_lists_are_read_alike_with_and_without_simdjson(text: str) -> None:
    pytest.importorskip("simdjson")

    def read() -> object:
        try:
            return decode_member("json", text.encode(), 0).tolist()
        except ValueError as error:
            return str(error)

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_lm.shards.members._parsers", None)
        assert read() == fast
