"""What a file is by its first bytes, for messages about one that is not what it is taken for."""

from __future__ import annotations

from typing import NamedTuple

FIRST_BYTES = 512
"""That many are enough for `file_kind`."""


class Kind(NamedTuple):
    """A kind of file with its article, and what to do where another one is needed, if there is something."""

    name: str
    remedy: str = ""
    text: bool = False


_UNPACK = "decompress it first"
_POINTER = Kind("a Git LFS pointer", "fetch the file itself with `git lfs pull`, or download it", True)
_MAGIC = {
    b"version https://git-lfs": _POINTER,
    b"\x1f\x8b": Kind("a gzip file", _UNPACK),
    b"\x28\xb5\x2f\xfd": Kind("a zstd file", _UNPACK),
    b"BZh": Kind("a bzip2 file", _UNPACK),
    b"\xfd7zXZ\x00": Kind("an xz file", _UNPACK),
    b"PK\x03\x04": Kind("a zip archive", "unpack it first"),
    b"PAR1": Kind("a parquet table"),
    b"\x93NUMPY": Kind("a NumPy array"),
}
_SAFETENSORS = Kind(
    "a safetensors file", "read it with safetensors.torch.load_file and write the tensors with torch.save, in OpenLM's keys"
)
_PAGE = Kind("an HTML or XML page, such as a web server answers with", "download the file itself, not the page about it", True)
_JSON = Kind("JSON", "give the file itself, not a description of it", True)


def file_kind(begin: bytes) -> Kind | None:
    """The kind of a file by its first bytes, up to `FIRST_BYTES` of them; None where they don't tell it."""
    if not begin:
        return Kind("an empty file", "download or copy it again", True)
    for magic, kind in _MAGIC.items():
        if begin.startswith(magic):
            return kind
    if begin[257:262] == b"ustar":
        return Kind("a tar archive")
    if begin[8:10] == b'{"' and int.from_bytes(begin[:8], "little") < 1 << 32:
        return _SAFETENSORS
    start = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] in (b"<", b"{", b"[") and b"\0" not in begin:
        return _PAGE if start[:1] == b"<" else _JSON
    words = start[:24].decode("latin-1").rstrip()
    readable = words and words.isascii() and all(c.isprintable() or c.isspace() for c in words)
    return Kind(f"a text that begins with {words!r}", text=True) if readable else None


def is_json(begin: bytes) -> bool:
    """Whether a file may be JSON."""
    return file_kind(begin) == _JSON


def instead_of(wanted: str, begin: bytes, remedy: str = "download or copy it again") -> str:
    """Of a file that is not `wanted`: "is not a tar file but a Git LFS pointer; fetch ...". `remedy`: where its kind has none."""
    kind = file_kind(begin) or Kind("")
    return f"is not {wanted}{kind.name and f' but {kind.name}'}; {kind.remedy or remedy}"


def stand_in(wanted: str, begin: bytes) -> str:
    """`instead_of` where a Git LFS pointer or a page came in the place of a file; "" where neither did."""
    return instead_of(wanted, begin) if file_kind(begin) in (_POINTER, _PAGE) else ""
