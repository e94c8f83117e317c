"""A dataset's files: of a name on the Hugging Face hub, a local folder, or a URL."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from open_lm import storage
from open_lm.tokens.reading.inputs import InputFile, list_inputs
from open_lm.tokens.tools.hub_dataset import choose_files, match_files

_HUB = "hf://datasets/"


def dataset_folder(dataset: str, revision: str | None) -> str:
    """Where a dataset lies: hf://datasets/<owner>/<name>@<revision> for a name, else what was given.

    Raises:
        ValueError: a revision of something that has none.
    """
    if "://" not in dataset and not storage.exists(dataset):
        if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1:
            raise ValueError(f"--dataset {dataset}: no such folder; give a folder, a URL or a name such as wikimedia/wikipedia")
        return f"{_HUB}{dataset}" + (f"@{quote(revision, safe='')}" if revision else "")
    if revision:
        raise ValueError(f"--revision {revision}: only a dataset on the Hugging Face hub has revisions; leave it out for {dataset}")
    return dataset.rstrip("/")


def dataset_files(folder: str, subset: str | None, split: str, patterns: Sequence[str]) -> list[InputFile]:
    """The files of a subset's split, or those that match some patterns, in the order of their names.

    Raises:
        ValueError: no such dataset, subset, split or file.
        OSError: the storage fails.
    """
    try:
        files = list_inputs([folder])
    except ValueError as error:
        if folder.startswith(_HUB) and not storage.exists(folder):
            raise ValueError(f"--dataset {folder}: there is none on the hub, or only with an HF_TOKEN; check name and --revision") from None
        raise ValueError(str(error).replace("--input-files", "--dataset", 1)) from None
    start = len(folder.removeprefix("file://")) if not storage.is_remote(folder) else len(folder)
    by_name = {_name(file.path, folder, start): file for file in files}
    names = list(by_name)
    chosen = match_files(names, patterns) if patterns else choose_files(names, _readme(folder), subset, split)
    return [by_name[name] for name in chosen]


def _name(path: str, folder: str, start: int) -> str:
    """The path of a file inside the dataset; for a dataset that is one file, its name."""
    return path[start:].strip("/") or path.rpartition("/")[2]


def _readme(folder: str) -> str:
    try:
        return storage.read_bytes(storage.join(folder, "README.md")).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
