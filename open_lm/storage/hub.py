"""The Hugging Face hub, asked once whether it is there: its clients try for half a minute, and say so line by line."""

from __future__ import annotations

import functools
import ssl
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

_SECONDS = 3.0
"""For an answer, of whatever kind. Downloads have the patience of their clients."""


@functools.lru_cache
def unreachable(url: str) -> str | None:
    """Why a web server doesn't answer, None where it does, after a few seconds at most; an answer is that also where it is an error."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS).close()
            found.append(None)
        except (urllib.error.HTTPError, HTTPException):
            found.append(None)
        except OSError as error:
            reason = getattr(error, "reason", error)  # another client may know the certificate
            found.append(None if isinstance(reason, ssl.SSLError) else " ".join(str(reason).split()) or type(reason).__name__)

    thread = threading.Thread(target=ask, daemon=True)  # looking for the name of a server knows no time limit
    thread.start()
    thread.join(_SECONDS)
    return found[0] if found else f"no answer in {_SECONDS:.0f} seconds"


def hub_problem() -> str | None:
    """Why the hub can't be asked; None where it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    why = unreachable(constants.ENDPOINT)
    return why and f"{constants.ENDPOINT} can't be reached ({why})"


def from_hub(name: str, file: str, optional: bool = False) -> bytes:
    """A file of a model on the hub, or as it is cached where the hub can't be asked.

    Args:
        optional: b"" is the answer where the model has no such file, or only the cache can be asked, which hasn't it.

    Raises:
        ValueError: there is no such model or file, or it can't be fetched, in words.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    problem = hub_problem()
    try:
        return Path(huggingface_hub.hf_hub_download(name, file, local_files_only=problem is not None)).read_bytes()
    except Exception as error:  # of the name, the network, the cache
        uncached = isinstance(error, LocalEntryNotFoundError)
        if optional and (problem if uncached else isinstance(error, EntryNotFoundError)):
            return b""
        words = " ".join(str(error).split())[:200]
    if uncached:
        raise ValueError(f"{problem or words}, and the cache hasn't it")
    raise ValueError(f"can't be fetched from the Hugging Face hub ({words})")
