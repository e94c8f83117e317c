"""Which files of a dataset hold a subset and a split of it. Names in, names out; knows no storage.

As on the Hugging Face hub: the `configs` at the top of README.md name subsets and the files of their splits; without them, a folder is a
subset, and the word train, test or validation in a file's path makes it part of that split.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from open_lm.storage.yaml_json import NotTakenError, read_yaml

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def choose_files(names: Sequence[str], readme: str, subset: str | None, split: str) -> list[str]:
    """The files of a subset's split, in the order of their names.

    Args:
        names: paths inside the dataset's folder, of files of a known kind.
        readme: README.md, "" without one.
        subset: None for the only or the default one.

    Raises:
        ValueError: no such subset or split, with those that there are.
    """
    configs = _configs(readme)
    chosen = _of_config(names, configs, subset, split) if configs else _by_names(names, subset, split)
    if not chosen:
        raise ValueError(f"--split {split}: no file of a known kind belongs to it; see the dataset's page, or name files with --files")
    return sorted(chosen)


def match_files(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """The files that match patterns such as data/*.parquet. Raises ValueError for a pattern without a match."""
    found: set[str] = set()
    for pattern in patterns:
        some = _match(names, pattern)
        if not some:
            raise ValueError(f"--files {pattern}: matches no file of a known kind; there are {_some(names)}")
        found.update(some)
    return sorted(found)


def _configs(readme: str) -> dict[str, Mapping[str, Any]]:
    """Subsets by name, from the YAML block at the top of README.md."""
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", readme, re.DOTALL)
    try:
        head = read_yaml(match.group(1)) if match else None
    except NotTakenError as error:
        raise ValueError(f"README.md of the dataset, below its first line: {error}; choose files with --files") from None
    except ValueError:  # a page for people: names decide then
        return {}
    found = head.get("configs") if isinstance(head, dict) else None
    configs = [config for config in found or () if isinstance(config, dict) and (config.get("data_files") or config.get("data_dir"))]
    return {str(config.get("config_name", "default")): config for config in configs}


def _of_config(names: Sequence[str], configs: Mapping[str, Mapping[str, Any]], subset: str | None, split: str) -> list[str]:
    if subset is None:
        defaults = [name for name, config in configs.items() if config.get("default") or name == "default"]
        if not defaults and len(configs) > 1:
            raise ValueError(f"--subset: missing; the dataset has {_some(list(configs))}")
        subset = (defaults or list(configs))[0]
    if subset not in configs:
        raise ValueError(f"--subset {subset}: the dataset has none of that name; it has {_some(list(configs))}")
    config = configs[subset]
    folder = str(config.get("data_dir") or "").strip("/")
    inside = [name for name in names if not folder or name.startswith(f"{folder}/")]
    files = config.get("data_files")
    if not files:
        return _of_split(inside, split)
    by_split = _paths_by_split(files)
    if split not in by_split:
        raise ValueError(f"--split {split}: the subset {subset} has none of that name; it has {_some(list(by_split))}")
    prefix = f"{folder}/" if folder else ""
    return list({name for path in by_split[split] for name in _match(inside, prefix + path)})


def _paths_by_split(files: Any) -> dict[str, list[str]]:
    """Patterns by split; files without a split are those of train."""
    if isinstance(files, dict):
        return {str(split): _list(paths) for split, paths in files.items()}
    found: dict[str, list[str]] = {}
    for one in _list(files):
        if isinstance(one, dict):
            found.setdefault(str(one.get("split", "train")), []).extend(_list(one.get("path", ())))
        else:
            found.setdefault("train", []).append(str(one))
    return found


def _by_names(names: Sequence[str], subset: str | None, split: str) -> list[str]:
    if subset is not None:
        inside = [name for name in names if subset in name.split("/")[:-1] or name.startswith(f"{subset.strip('/')}/")]
        if not inside:
            folders = sorted({name.rpartition("/")[0] for name in names} - {""})
            raise ValueError(f"--subset {subset}: the dataset has no folder of that name; it has {_some(folders) or 'none'}")
        names = inside
    return _of_split(names, split)


def _of_split(names: Sequence[str], split: str) -> list[str]:
    """Files whose path has a word of the split; all for train when no path has a word of any."""
    words = _WORDS.get(split, (split,))
    chosen = [name for name in names if _has_word(name, words)]
    known = [word for some in _WORDS.values() for word in some]
    return chosen if chosen or split != "train" or any(_has_word(name, known) for name in names) else list(names)


def _has_word(name: str, words: Sequence[str]) -> bool:
    return (
        re.search(rf"(^|[^a-z]){'|'.join(words) if len(words) == 1 else '(' + '|'.join(words) + ')'}([^a-z]|$)", name.lower()) is not None
    )


def _match(names: Sequence[str], pattern: str) -> list[str]:
    pattern = pattern.removeprefix("./")
    return [name for name in names if fnmatch.fnmatchcase(name, pattern) or (pattern.endswith("/") and name.startswith(pattern))]


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
