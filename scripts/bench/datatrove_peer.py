"""datatrove beside us: its environment, its pipeline over a corpus, and whether its tokens are ours."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from open_lm.shards.members import token_dtype
from open_lm.tokenizer import Tokenizer
from scripts.bench.environment import environment as peer_environment
from scripts.bench.environment import versions as package_versions

_HERE = Path(__file__).resolve().parent
_REQUIREMENTS = _HERE / "requirements-datatrove.txt"
_SHARED_PACKAGES = ("tokenizers", "orjson", "zstandard")
_COMPARED = 200
"""Documents whose ids are compared, from all files."""


@dataclass(frozen=True)
class Finished:
    """One run. `work` is from the first worker that is ready to the end of the last task, `startup` before that, `wall` from outside."""

    wall: float
    startup: float
    work: float
    tokens: int

    def figures(self) -> dict[str, float]:
        """For the JSON."""
        times = {"wall_seconds": self.wall, "startup_seconds": self.startup, "work_seconds": self.work}
        return {name: round(seconds, 3) for name, seconds in times.items()}


def environment() -> Path:
    """The Python of datatrove's environment, made where it is missing. Raises RuntimeError when packages can't be installed."""
    return peer_environment(_REQUIREMENTS)


def versions(python: Path) -> dict[str, str]:
    """Of the packages that matter, in that environment."""
    found = package_versions(python, ["datatrove", *_SHARED_PACKAGES])
    return {"datatrove": found["datatrove"], **{f"{name} of datatrove": found[name] for name in _SHARED_PACKAGES}}


def run(python: Path, folder: str, tokenizer: Tokenizer, tokenizer_file: str, workers: int, output: Path) -> Finished:
    """Tokenize a folder of .jsonl.zst into a new one.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    shutil.rmtree(output, ignore_errors=True)
    command: list[str | Path] = [python, _HERE / "datatrove_pipeline.py", folder, output, tokenizer_file, tokenizer.eot_token, str(workers)]
    plain = {name: value for name, value in os.environ.items() if name not in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "PYTHONPATH")}
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    wall = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"datatrove ended with {done.returncode}:\n{done.stderr[-3000:]}")
    times = json.loads(done.stdout.splitlines()[-1])
    tokens = sum(int(ends[-1]) for _, ends in _outputs(output))
    return Finished(wall, times["begun"] - started, times["ended"] - times["begun"], tokens)


def different(tokenizer: Tokenizer, paths: list[str], output: Path) -> tuple[int, int]:
    """Encode a sample of a corpus's documents and look for them, whole, among those that datatrove wrote.

    Returns:
        (documents compared, those that aren't there).
    """
    dtype = token_dtype(tokenizer.backend.get_vocab_size())
    there: set[bytes] = set()
    for file, ends in _outputs(output):
        ids = np.fromfile(file, dtype)
        there.update(_digest(ids[a:b]) for a, b in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
    texts = list(_sample(paths))
    wanted = (np.array([*ids, tokenizer.eot_id], dtype) for ids in tokenizer.encode_batch(texts))
    return len(texts), sum(_digest(ids) not in there for ids in wanted)


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.sha256(ids.tobytes()).digest()


def _outputs(output: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """Files of ids, each with the ends of its documents, uint64 [documents]."""
    for index in sorted(output.glob("tokens/*.ds.index")):
        yield index.with_suffix(""), np.fromfile(index, np.uint64)


def _sample(paths: list[str]) -> Iterator[str]:
    random_numbers = random.Random(0)
    for path in paths:
        with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
            lines = stream.read().split(b"\n")[:-1]
        for line in random_numbers.sample(lines, min(len(lines), -(-_COMPARED // len(paths)))):
            document: dict[str, Any] = orjson.loads(line)
            yield document["text"]
