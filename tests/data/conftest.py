"""Shards made on the spot."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """write_tar(path, [(member, bytes), ...], **tarfile options)."""
    return _write_tar


@pytest.fixture
def write_shards(tmp_path: Path) -> Callable[..., Path]:
    """write_shards(counts, key=..., length=..., first=..., folder=...): a folder of shards in which every row has its own tokens.

    Row number i of the folder is `[first + i] * length`.
    """

    def write(
        counts: Iterable[int], key: str = "txt", length: int = 5, first: int = 0, folder: str = "shards", manifest: bool = False
    ) -> Path:
        number, lines = first, []
        for index, count in enumerate(counts):
            rows = [[number + i] * length for i in range(count)]
            number += count
            members = [(f"{i:012d}.{key}", _member(key, row)) for i, row in enumerate(rows)]
            if key == "npy":
                cuts = range(0, count, 3)
                members = [(f"{i:012d}.npy", _npy(rows[cut : cut + 3])) for i, cut in enumerate(cuts)]
            path = _write_tar(tmp_path / folder / f"shard-{index:04d}.tar", members)
            lines.append(json.dumps({"shard": path.stem, "num_sequences": count}))
        if manifest:
            (tmp_path / folder / "manifest.jsonl").write_text("\n".join(lines))
        return tmp_path / folder

    return write


def _member(key: str, row: list[int]) -> bytes:
    text = str(row).encode()
    return gzip.compress(text) if key == "json.gz" else text


def _npy(rows: list[list[int]]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows, dtype=np.uint16))
    return buffer.getvalue()
