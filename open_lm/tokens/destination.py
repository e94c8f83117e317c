"""Where shards go: a local folder, or a remote one that gets each file once it is whole and then holds the only copy.

<root>/<consumer>/shard-%07d.tar and manifest.jsonl, <root>/stats.json, tokenizer.json, tokenizer_config.json, lengths.png, provenance/.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from open_lm import storage
from open_lm.shards import provenance
from open_lm.shards.manifest import MANIFEST
from open_lm.tokenizer import TOKENIZER, TOKENIZER_CONFIG

STATS, PICTURE = "stats.json", "lengths.png"
_OURS = re.compile(
    rf"({STATS}|{TOKENIZER}|{TOKENIZER_CONFIG}|{PICTURE}|\d+/({MANIFEST}|shard-\d{{7,}}\.tar)|{provenance.FOLDER}/({provenance.FILES}|\d+/shard-\d{{7,}}\.npz))"
)


@dataclass(frozen=True)
class Destination:
    """A root folder, and for a remote one the local folder in which files are made before they are uploaded."""

    root: str
    staging: str | None = None

    @property
    def remote(self) -> bool:
        return self.staging is not None

    def url(self, name: str) -> str:
        """Where a file of the output is to be read."""
        return storage.join(self.root, name)

    def local(self, name: str) -> Path:
        """Where a file of the output is written."""
        return Path(self.staging or self.root) / name

    def deliver(self, name: str) -> None:
        """A written file is whole: upload it, see that it arrived, and remove the local copy."""
        if self.staging is not None:
            storage.upload(self.local(name), self.url(name))
            self.local(name).unlink()

    def put(self, name: str, data: bytes) -> None:
        """A small file, whole or not at all."""
        storage.write_bytes(self.url(name), data)

    def read(self, name: str) -> bytes | None:
        """A small file, None where there is none."""
        try:
            return storage.read_bytes(self.url(name))
        except FileNotFoundError:
            return None

    def files(self) -> list[str]:
        """Names of all files below the root."""
        if not self.remote:
            root = Path(self.root)
            if root.exists() and not root.is_dir():
                raise ValueError(f"--output-dir: {self.root} is a file; give another folder")
            return [(Path(folder) / name).relative_to(root).as_posix() for folder, _, names in os.walk(root) for name in names]
        start = len(self.root.rstrip("/")) + 1
        return [stored.url[start:] for stored in storage.list_files(self.root.rstrip("/") + "/")]

    def has(self, name: str, size: int) -> bool:
        """True for a file of this size."""
        try:
            return storage.size(self.url(name)) == size
        except FileNotFoundError:
            return False

    def clear(self) -> None:
        """Remove what this program writes; other files stay. The statistics go last, with nothing in them but whose they are, so that
        what a killed process leaves is neither finished nor a stranger's.
        """
        names = list(filter(is_written, self.files()))
        if STATS in names:
            self.put(STATS, json.dumps({"job": {}}).encode())
        for name in sorted(names, key=lambda name: name == STATS):
            storage.remove(self.url(name))

    def clear_left_overs(self) -> None:
        """Remove what a killed process left of unfinished files."""
        for name in () if self.remote else self.files():
            if storage.finished_name(name) != name and is_written(name):
                storage.remove(self.url(name))


def is_written(name: str) -> bool:
    """Whether this program writes files of this name into an output folder, or left them when it was killed."""
    return _OURS.fullmatch(storage.finished_name(name)) is not None


def shard_name(number: int, consumers: int) -> str:
    """Shards are dealt to the consumers in turn; each consumer numbers its own from 0."""
    return f"{number % consumers}/shard-{number // consumers:07d}.tar"


def provenance_name(number: int, consumers: int) -> str:
    """The provenance of a shard."""
    return f"{provenance.FOLDER}/{shard_name(number, consumers).removesuffix('.tar')}.npz"


def destination(output_dir: str | None, seq_len: int, s3_base: str | None, staging: Path) -> Destination:
    """The destination of some options; `s3_base`: S3_BASE where the shards are to be uploaded there."""
    if s3_base is not None:
        return Destination(s3_base if "://" in s3_base else f"s3://{s3_base.lstrip('/')}", str(staging))
    assert output_dir is not None
    if storage.is_remote(output_dir):
        return Destination(storage.join(output_dir, f"{seq_len}-v1"), str(staging))
    return Destination(str(storage.local_path(output_dir) / f"{seq_len}-v1"))
