"""The data of task files, in LLM Foundry's local_data layout: which files, from where, whole or not.

A file is checked by what its source says of it: GitHub's list of LLM Foundry's files has the git hash of each, a mirror may have a
`SHA256SUMS` beside its files. What came is written down in `local_data/SHA256SUMS`, so that a second run sees what has changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from open_lm import storage
from open_lm.evaluation.foundry.entries import read_yaml
from open_lm.params.fields import UserError
from open_lm.progress import Progress
from open_lm.storage.hub import unreachable

FOLDER = "local_data"
SUMS = "SHA256SUMS"
REVISION = "v0.22.0"
"""Of LLM Foundry, that of requirements-foundry.txt."""
_TREE = "https://api.github.com/repos/mosaicml/llm-foundry/git/trees/{revision}?recursive=1"
_FILES = "https://raw.githubusercontent.com/mosaicml/llm-foundry/{revision}/scripts/eval"
_INSIDE = "scripts/eval/"
_OUTSIDE = "leads out of local_data; name a file inside, without `..`"


class Source(Protocol):
    """Where files come from. Names are as in a task file: `local_data/world_knowledge/arc_easy.jsonl`."""

    def fetch(self, name: str) -> bytes | None:
        """The content, checked where that is possible; None where the source hasn't this file. Raises ValueError, OSError."""


class Mirror:
    """A folder or URL that holds `local_data`, or is it."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        if url.startswith(("http://", "https://")) and (why := unreachable(url)):
            raise ValueError(f"--mirror {url}: can't be reached ({why}); check the address and the network, or give a folder")
        self.sums: dict[str, str] = {}
        for place in (FOLDER + "/", ""):
            if storage.exists(storage.join(self.url, place + SUMS)):
                self.sums = read_sums(storage.read_bytes(storage.join(self.url, place + SUMS)))

    def fetch(self, name: str) -> bytes | None:
        """See Source."""
        short = name.removeprefix(f"{FOLDER}/")
        found = next((url for url in (storage.join(self.url, name), storage.join(self.url, short)) if storage.exists(url)), None)
        if found is None:
            return None
        data = storage.read_bytes(found)
        if short in self.sums and hashlib.sha256(data).hexdigest() != self.sums[short]:
            raise ValueError(f"{found}: is not what {SUMS} of the mirror says; fetch it there again")
        return data


class GitHub:
    """LLM Foundry's repository at one revision."""

    def __init__(self, revision: str = REVISION, tree: str = _TREE, files: str = _FILES):
        self.files = files.format(revision=revision)
        url = tree.format(revision=revision)
        try:
            if why := unreachable(url):
                raise ValueError(why)
            listed: Any = json.loads(storage.read_bytes(url))
            self.hashes = {item["path"].removeprefix(_INSIDE): item["sha"] for item in listed["tree"] if item["type"] == "blob"}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"GitHub's list of LLM Foundry {revision} can't be read ({reason}); check network and --revision, or give --mirror"
            ) from None

    def fetch(self, name: str) -> bytes | None:
        """See Source."""
        if name not in self.hashes:
            return None
        data = storage.read_bytes(f"{self.files}/{name}")
        if git_hash(data) != self.hashes[name]:
            raise ValueError(f"{self.files}/{name}: came damaged (another git hash than GitHub lists); try again")
        return data


def git_hash(data: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def read_sums(data: bytes) -> dict[str, str]:
    """sha256 by name, from the format of `sha256sum`."""
    pairs = (line.split(maxsplit=1) for line in data.decode("utf-8-sig").splitlines() if line.strip())
    return {pair[1].lstrip("*").removeprefix(f"{FOLDER}/"): pair[0].lower() for pair in pairs if len(pair) == 2}


def wanted_files(urls: Iterable[str]) -> list[str]:
    """Names below `local_data/` that task files ask for, each once. Raises UserError for files that list no tasks."""
    names: dict[str, None] = {}
    problems = []
    for url in urls:
        try:
            content: Any = read_yaml(url)
            uris = [str(task["dataset_uri"]) for task in content["icl_tasks"]]
        except UserError as error:
            problems += error.problems
            continue
        except (KeyError, TypeError) as error:
            problems.append(f"--eval-yaml {url}: not a YAML with `icl_tasks:` ({' '.join(str(error).split())})")
            continue
        found = [uri.removeprefix("eval/") for uri in uris if uri.removeprefix("eval/").startswith(f"{FOLDER}/")]
        problems += [f"--eval-yaml {url}: dataset_uri {name}: {_OUTSIDE}" for name in dict.fromkeys(found) if not _is_inside(name)]
        names |= dict.fromkeys(found)
    if problems:
        raise UserError(problems)
    return list(names)


def _is_inside(name: str) -> bool:
    """Whether a file of this name lies in `local_data`, wherever that is."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return len(parts) > 1 and parts[0] == FOLDER and ".." not in parts


@dataclass
class Report:
    """What became of the files, by name."""

    there: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """The source hasn't them."""
    failed: dict[str, str] = field(default_factory=dict)
    """And why."""


def download(names: Iterable[str], folder: Path, source: Callable[[], Source], tell: Callable[[str], None] = lambda line: None) -> Report:
    """Bring the files that aren't there into `folder`, each whole or not at all.

    Args:
        folder: that of the task files; gets `local_data/`.
        source: made when the first file is needed.
        tell: hears of each file.

    Raises:
        UserError: a name that is of no file in `local_data`.
    """
    names = list(names)
    outside = [f"{name}: {_OUTSIDE}" for name in names if not _is_inside(name)]
    if outside:
        raise UserError(outside)
    report, opened = Report(), None
    sums_path = folder / FOLDER / SUMS
    sums = read_sums(sums_path.read_bytes()) if sums_path.is_file() else {}
    for name in Progress("downloading", len(names), "files").over(names):
        short = name.removeprefix(f"{FOLDER}/")
        if _is_whole(folder / name, sums.get(short)):
            report.there.append(name)
            continue
        opened = opened or source()
        try:
            data = opened.fetch(name)
            if data is not None:
                _check_rows(data, name)
        except (OSError, ValueError) as error:
            report.failed[name] = " ".join(str(error).split())
            continue
        if data is None:
            report.missing.append(name)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with storage.atomic_write(folder / name) as file:
            file.write(data)
        sums[short] = hashlib.sha256(data).hexdigest()
        with storage.atomic_write(sums_path, "w") as file:
            file.writelines(f"{digest}  {key}\n" for key, digest in sorted(sums.items()))
        report.fetched.append(name)
        tell(f"{name}: {len(data):,} bytes")
    return report


def _is_whole(path: Path, digest: str | None) -> bool:
    """A file of which no sum is known is the user's own, and taken as it is."""
    return path.is_file() and (digest is None or hashlib.sha256(path.read_bytes()).hexdigest() == digest)


def _check_rows(data: bytes, name: str) -> None:
    first = data.lstrip().split(b"\n", 1)[0]
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{name}: the source has something there that isn't jsonl (it begins with {first[:60]!r})")
