"""A small corpus of random words, and the sequences of finished shards."""

from __future__ import annotations

import ast
import json
import random
import tarfile
from pathlib import Path

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog;", "été", "naïve", "漢字", "12", "345", "don't\n"]


def random_texts(count: int, seed: int) -> list[str]:
    """Documents of 0 to 60 words, every one different."""
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randrange(60))) for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def stored_sequences(folder: Path) -> list[list[int]]:
    """All sequences of a `<seq_len>-v1` folder of .txt members, in shard order, consumer by consumer."""
    sequences = []
    for shard in sorted(folder.glob("*/shard-*.tar")):
        with tarfile.open(shard) as tar:
            sequences += [ast.literal_eval(tar.extractfile(member).read().decode()) for member in tar]
    return sequences


def all_files(folder: Path) -> dict[str, bytes]:
    """Shards and manifests by path below the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*")) if p.is_file()}
