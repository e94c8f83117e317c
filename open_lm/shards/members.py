"""Members of a shard: token sequences to bytes and back.

txt      a Python list literal, one sequence: ints, `'<|endoftext|>'` for end of text, `'<|pad|>'` for masked (OpenLM)
json     a JSON list, one sequence; json.gz the same, gzipped (DCLM)
npy      a C-order array [n, length] of uint16 or uint32, many sequences (ours)
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from typing import Literal, get_args

import numpy as np
import orjson

Format = Literal["txt", "json.gz", "npy"]
WRITTEN_FORMATS: tuple[Format, ...] = get_args(Format)
READ_EXTENSIONS = ("txt", "json", "json.gz", "npy")
SEQUENCES_PER_MEMBER: dict[str, int] = {"txt": 1, "json.gz": 1, "npy": 64}
MASKED = -1
"""Id of a masked position in decoded tokens."""

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


def split_name(name: str) -> tuple[str, str] | None:
    """(base name, extension in lower case), split at the first dot of the file name; None for a name without one."""
    match = _NAME.match(name)
    return (match.group(1), match.group(2).lower()) if match else None


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest unsigned type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encode_member(fmt: Format, rows: np.ndarray) -> bytes:
    """Bytes of one member.

    Args:
        rows: [n, length], unsigned; n is 1 for txt and json.gz.
    """
    if fmt == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(rows), allow_pickle=False)
        return buffer.getvalue()
    assert len(rows) == 1, f"{fmt} holds one sequence a member"
    text = str(rows[0].tolist()).encode()
    return text if fmt == "txt" else gzip.compress(text, compresslevel=6, mtime=0)


def decode_member(extension: str, data: bytes, eot_id: int | None) -> np.ndarray:
    """Sequences of one member.

    Args:
        extension: one of `READ_EXTENSIONS`.
        eot_id: the id that stands for the string `'<|endoftext|>'`.

    Returns:
        int64 (txt, json, json.gz) or as stored (npy), [n, length]; masked positions are `MASKED`.

    Raises:
        ValueError: not a token sequence; the caller adds shard and member.
    """
    if extension == "npy":
        rows = np.load(io.BytesIO(data), allow_pickle=False)
        if rows.dtype.kind not in "ui":
            raise ValueError(f"holds {rows.dtype}, not integers")
        return rows.reshape(1, -1) if rows.ndim == 1 else rows
    if extension == "json.gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"is not whole gzip: {error}") from None
    elif extension not in READ_EXTENSIONS:
        raise ValueError(f"has the unknown extension {extension}; known are {', '.join(READ_EXTENSIONS)}")
    return _decode_list(data, eot_id)[None]


_LIST_BYTES = b"0123456789-, \n"


def _decode_list(data: bytes, eot_id: int | None) -> np.ndarray:
    plain = data.strip()
    if b"<|" in plain:
        names = {b"<|pad|>": MASKED} if eot_id is None else {b"<|pad|>": MASKED, b"<|endoftext|>": eot_id}
        for name, token in names.items():
            plain = plain.replace(b"'" + name + b"'", b"%d" % token).replace(b'"' + name + b'"', b"%d" % token)
    if plain.translate(None, _LIST_BYTES) == b"[]":  # nothing but integers: twice as fast without Python's own
        try:
            array = np.fromstring(plain[1:-1], dtype=np.int64, sep=",")
        except ValueError:
            array = np.empty(0, dtype=np.int64)
        if len(array) == plain.count(b",") + 1:
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
