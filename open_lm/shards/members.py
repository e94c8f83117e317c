"""Members of a shard: token sequences to bytes and back.

txt      a Python list literal, one sequence: ints, `'<|endoftext|>'` for end of text, `'<|pad|>'` for masked (OpenLM)
json     a JSON list, one sequence; json.gz the same, gzipped (DCLM)
npy      a C-order array [n, length] of uint16 or uint32, many sequences (ours); of int32 with a loss mask: a token t < 0 is read as ~t
         and is no target
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import re
import threading
import zlib
from typing import Any, Literal, get_args

import numpy as np
import orjson

_inflate: Any = zlib
with contextlib.suppress(ImportError):  # no wheel for this machine
    from isal import isal_zlib as _inflate  # twice as fast
_json: Any = None
with contextlib.suppress(ImportError):
    import simdjson as _json  # twice as fast as NumPy

Format = Literal["txt", "json.gz", "npy"]
WRITTEN_FORMATS: tuple[Format, ...] = get_args(Format)
READ_EXTENSIONS = ("txt", "json", "json.gz", "npy")
SEQUENCES_PER_MEMBER: dict[str, int] = {"txt": 1, "json.gz": 1, "npy": 64}
MASKED = -1
"""Id of a masked position in decoded tokens."""

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_NPY_HEADER = re.compile(rb"\{ *'descr': *'([^']*)', *'fortran_order': *(True|False), *'shape': *\(([0-9, ]*)\),? *\}\s*")
_MASKED_NAME = {"txt": b"'<|pad|>'", "json.gz": b'"<|pad|>"'}
_TABLE_LEAST, _TABLE_MOST = 1 << 16, 10**6  # the last id below 10^6 is 8 bytes with its comma and space
_GZIP_LEVEL = 4  # 2.4 times as fast as 6 on lists of ids, for 6 % more bytes
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no time, no name, no system


def split_name(name: str) -> tuple[str, str] | None:
    """(base name, extension in lower case), split at the first dot of the file name; None for a name without one."""
    match = _NAME.match(name)
    return (match.group(1), match.group(2).lower()) if match else None


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest unsigned type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encode_member(fmt: Format, rows: np.ndarray) -> tuple[bytes | np.ndarray, ...]:
    """The bytes of one member, in pieces that follow one another.

    Args:
        rows: [n, length]; n is 1 for txt and json.gz. Integers, in npy unsigned ones or int32. Of negative ones txt and json.gz can
            hold `MASKED` alone, npy of int32 any: masked targets.

    Returns:
        bytes, or (npy) uint8 arrays that are views of `rows`.

    Raises:
        ValueError: a loss mask that the format can't hold.
    """
    if fmt == "npy":
        assert rows.dtype.kind == "u" or rows.dtype == np.int32, "npy holds ids, or ids with a mask in int32"
        rows = np.ascontiguousarray(rows)
        return npy_header(rows.shape, rows.dtype), rows.reshape(-1).view(np.uint8)
    assert len(rows) == 1, f"{fmt} holds one sequence a member"
    low = int(rows.min(initial=0)) if rows.dtype.kind == "i" else 0
    masked = low < 0
    if low < MASKED:
        raise ValueError(f"{fmt} can't hold a loss mask (masked targets, stored as ~id); give npy")
    text = _masked_list_text(_MASKED_NAME[fmt], rows[0]) if masked else _list_text(rows[0])
    return (text if fmt == "txt" else _gzipped(text),)


@functools.lru_cache(64)
def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What stands before the numbers of a C-order .npy, as `np.save` writes it."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return out.getvalue()


def _list_text(ids: np.ndarray) -> bytes:
    """`str(list)` of ids [length]: a table look-up, and the table's padding removed."""
    top = int(ids.max(initial=0))
    if top >= _TABLE_MOST:
        return str(ids.tolist()).encode()
    table = _text_table(min(_TABLE_MOST, max(_TABLE_LEAST, 1 << top.bit_length())))
    return b"[" + table[ids].tobytes().translate(None, b"\0")[:-2] + b"]"


@functools.lru_cache(4)
def _text_table(size: int) -> np.ndarray:
    """uint64 [size]: the eight bytes of `"<id>, "`, padded with zeros."""
    return np.array([b"%d, " % i for i in range(size)], dtype="S8").view(np.uint64)


def _masked_list_text(masked: bytes, ids: np.ndarray) -> bytes:
    return b"[" + b", ".join(masked if i == MASKED else b"%d" % i for i in ids.tolist()) + b"]"


def _gzipped(text: bytes) -> bytes:
    """One gzip member, the same whatever Python writes into its headers."""
    deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    check = zlib.crc32(text) | (len(text) & 0xFFFFFFFF) << 32
    return b"".join((_GZIP_HEADER, deflate.compress(text), deflate.flush(), check.to_bytes(8, "little")))


def decode_member(extension: str, data: bytes, eot_id: int | None) -> np.ndarray:
    """Sequences of one member.

    Args:
        extension: one of `READ_EXTENSIONS`.
        eot_id: the id that stands for the string `'<|endoftext|>'`.

    Returns:
        int64 (txt, json, json.gz) or as stored (npy, read-only), [n, length]; masked positions are `MASKED`.

    Raises:
        ValueError: not a token sequence; the caller adds shard and member.
    """
    if extension == "npy":
        return _decode_npy(data)
    if extension == "json.gz":
        try:
            data = _gunzipped(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"is not whole gzip: {error}") from None
    elif extension not in READ_EXTENSIONS:
        raise ValueError(f"has the unknown extension {extension}; known are {', '.join(READ_EXTENSIONS)}")
    return _decode_list(data, eot_id)[None]


def _gunzipped(data: bytes) -> bytes:
    try:
        whole = _inflate.decompressobj(16 + zlib.MAX_WBITS)
        text: bytes = whole.decompress(data)
        if whole.eof and not whole.unused_data:
            return text
    except _inflate.error:
        pass  # the next line says what is wrong
    return gzip.decompress(data)  # several gzip members, padding, or damage


def _decode_npy(data: bytes) -> np.ndarray:
    start, shape, dtype = npy_layout(data)
    rows = np.frombuffer(data, np.uint8, offset=start)
    if len(rows) != shape[0] * shape[1] * dtype.itemsize:
        raise ValueError(f"has {len(rows)} bytes of tokens, its npy header says {shape[0] * shape[1] * dtype.itemsize}")
    return rows.view(dtype).reshape(shape)


def npy_layout(data: bytes) -> tuple[int, tuple[int, int], np.dtype]:
    """What the start of a .npy says: bytes of the header, shape [n, length] (a vector is one sequence), dtype.

    Raises:
        ValueError: no whole header of version 1.0, or one of something else than token sequences.
    """
    if data[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("is no npy array of token sequences: it has no npy header of version 1.0")
    start = 10 + int.from_bytes(data[8:10], "little")
    if len(data) < start:
        raise ValueError("is no npy array of token sequences: its header is cut")
    return start, *_shape_and_dtype(data[10:start])


@functools.lru_cache(64)
def _shape_and_dtype(header: bytes) -> tuple[tuple[int, int], np.dtype]:
    match = _NPY_HEADER.fullmatch(header)  # NumPy's own reader raises errors of its parser on damaged ones
    try:
        if match is None:
            raise TypeError
        dtype = np.dtype(match.group(1).decode())
    except (TypeError, ValueError, SyntaxError):
        raise ValueError(f"is no npy array of token sequences: its header says {header[:100].decode('latin-1').strip()!r}") from None
    shape = tuple(int(number) for number in match.group(3).replace(b" ", b"").split(b",") if number)
    if dtype.kind not in "ui":
        raise ValueError(f"holds {dtype}, not integers")
    if len(shape) not in (1, 2) or (match.group(2) == b"True" and len(shape) == 2):
        raise ValueError(f"holds an array of shape {shape}; give integers in C order, [sequences, length]")
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1]), dtype


_LIST_BYTES = b"0123456789-, \n"
_LOOK = 4096
"""Bytes of a list that are searched for names before it is taken for one of numbers; a later one costs a second parse, nothing else."""


class _Parsers(threading.local):
    """simdjson's parser, which belongs to one thread."""

    def __init__(self) -> None:
        self.parse = _json.Parser().parse


_parsers = _Parsers() if _json else None


def _decode_flat_list(data: bytes) -> np.ndarray | None:
    """A JSON list of integers and nothing else, by simdjson; None for anything else."""
    assert _parsers is not None
    if data.find(b"[", 1) >= 0:  # lists in lists would be flattened
        return None
    try:
        array = np.frombuffer(_parsers.parse(data).as_buffer(of_type="i"), np.int64)
    except (ValueError, TypeError, AttributeError):
        return None
    return array if len(array) else None


def _decode_list(data: bytes, eot_id: int | None) -> np.ndarray:
    if _parsers and data.find(b"<", 0, _LOOK) < 0 and (flat := _decode_flat_list(data)) is not None:
        return flat
    plain = data.strip()
    rest = plain.translate(None, _LIST_BYTES)
    if rest != b"[]" and b"<|" in rest:
        names = {b"<|pad|>": MASKED} if eot_id is None else {b"<|pad|>": MASKED, b"<|endoftext|>": eot_id}
        for name, token in names.items():
            plain = plain.replace(b"'" + name + b"'", b"%d" % token).replace(b'"' + name + b'"', b"%d" % token)
        rest = plain.translate(None, _LIST_BYTES)
    if rest == b"[]":  # nothing but integers: twice as fast without Python's own
        try:
            array = np.fromstring(plain[1:-1], dtype=np.int64, sep=",")
        except ValueError:
            array = np.empty(0, dtype=np.int64)
        if len(array) == np.count_nonzero(np.frombuffer(plain, np.uint8) == ord(",")) + 1:
            return array
    return _decode_any_list(data, eot_id)


def _decode_any_list(data: bytes, eot_id: int | None) -> np.ndarray:
    try:
        tokens = orjson.loads(data.replace(b"'", b'"'))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is not a list of tokens: {error}") from None
    if not isinstance(tokens, list) or not tokens:
        raise ValueError("is not a list of tokens")
    try:
        return np.array([_token(t, eot_id) for t in tokens], dtype=np.int64)
    except OverflowError:
        raise ValueError("has a token id beyond 63 bits") from None


def _token(token: object, eot_id: int | None) -> int:
    if type(token) is int:
        return token
    if token == "<|pad|>":
        return MASKED
    if token == "<|endoftext|>":
        if eot_id is None:
            raise ValueError("holds the string '<|endoftext|>', whose id is unknown; give the shards' --tokenizer")
        return eot_id
    raise ValueError(f"holds {token!r}, which is no token id")
