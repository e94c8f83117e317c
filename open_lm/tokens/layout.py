"""The output folder `<output-dir>/<seq_len>-v1/`: what this program writes there, and removing exactly that."""

from __future__ import annotations

import re
from pathlib import Path

from open_lm.shards.manifest import MANIFEST
from open_lm.tokens.stats import STATS

TOKENIZER = "tokenizer.json"

_SHARD = re.compile(r"shard-\d{7,}\.tar")


def shards_folder(output_dir: str, seq_len: int) -> Path:
    """Where the consumers' folders lie."""
    return Path(output_dir).expanduser() / f"{seq_len}-v1"


def claim(folder: Path, overwrite: bool) -> None:
    """Raises ValueError for a folder that holds something, unless it may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output-dir {folder.parent}: {folder} is a file; give another folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--output-dir {folder.parent}: {folder} is not empty; give --overwrite to replace it, or another folder")


def remove_written(folder: Path) -> None:
    """Remove what an earlier run wrote; other files stay."""
    if not folder.is_dir():
        return
    for name in (STATS, TOKENIZER):
        (folder / name).unlink(missing_ok=True)
    for consumer in folder.iterdir():
        if not (consumer.is_dir() and not consumer.is_symlink() and consumer.name.isdecimal()):
            continue
        for file in consumer.iterdir():
            if file.name == MANIFEST or _SHARD.fullmatch(file.name):
                file.unlink()
        if not any(consumer.iterdir()):
            consumer.rmdir()
