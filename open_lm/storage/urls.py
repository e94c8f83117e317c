"""Urls: what is local, what is remote, and names inside folders. Nothing here looks at a storage.

A path without `scheme://` is local, whatever its name; `file://` is local too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme(url: str) -> str:
    """The scheme in lower case; "file" for a path without one."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else "file"


def is_remote(url: str) -> bool:
    """True for `scheme://` URLs other than file://."""
    return scheme(url) != "file"


def local_path(url: str) -> Path:
    """The path of a local url. `~` is the home folder."""
    assert not is_remote(url), url
    match = _SCHEME.match(url)
    return Path(os.path.expanduser(url[match.end() :] if match else url))


def join(folder: str, name: str) -> str:
    """`name` inside `folder`; an empty folder is the working folder, never the root."""
    return name if folder in ("", ".") else f"{folder.rstrip('/')}/{name}"


def parent(url: str) -> str:
    """The folder of a url; "" where it has none."""
    return url.rpartition("/")[0] if "/" in url else ""
