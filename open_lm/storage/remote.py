"""The file systems behind remote urls. With `s3.py` and `source.py` the only place that knows fsspec, s3fs and aiohttp.

A client belongs to one process and to the settings in the environment (AWS_*, FSSPEC_*, HF_*) as they were when it was made; other
settings or a forked process get a new one. Nothing starts at import.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import Any

from open_lm.storage.faults import StorageError, explained, timeout
from open_lm.storage.hub import hub_problem
from open_lm.storage.urls import scheme

_CONNECT_TIMEOUT = 5.0
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "hf": "huggingface_hub"}
_clients: dict[tuple[int, str], tuple[object, Any]] = {}
_lock = threading.Lock()


def _unlock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)  # another thread of the parent may have held it


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a remote url, and the path in it.

    Raises ValueError for an unknown scheme, or one whose package isn't installed.
    """
    name = scheme(url)
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "FSSPEC_", "HF_", "OPENLM_STORAGE_"))))
    with _lock:
        kept = _clients.get((os.getpid(), name))
        if kept is None or kept[0] != settings:
            kept = _clients[os.getpid(), name] = (settings, _client(url))
    return kept[1], kept[1]._strip_protocol(url)


def is_s3(url: str) -> bool:
    """True for a url of the S3 protocol."""
    return scheme(url) in ("s3", "s3a")


def is_http(url: str) -> bool:
    """True for http:// and https://."""
    return scheme(url) in ("http", "https")


def _client(url: str) -> Any:
    import fsspec

    name = scheme(url)
    if name == "hf" and importlib.util.find_spec("huggingface_hub") and (problem := hub_problem()):
        raise StorageError(f"{url}: {problem}; check the network, give a local file or folder, or set HF_ENDPOINT to a mirror")
    try:
        made = fsspec.filesystem(name, skip_instance_cache=True, **_options(url))
    except ImportError:
        package = _PACKAGES.get(name)
        if package is None:
            raise ValueError(f"{url}: {name}:// needs a Python package that isn't installed; see fsspec's documentation") from None
        raise ValueError(f"{url}: {name}:// needs the package {package}; pip install {package}") from None
    except ValueError as error:
        if name in fsspec.available_protocols():
            raise explained(url, error) from error
        raise ValueError(f"{url}: unknown scheme {name}://; known are s3, https, http, hf, gs and a path without a scheme") from None
    if is_s3(url):
        made.retries = 1
    return made


def _options(url: str) -> dict[str, Any]:
    """One attempt a request, nothing remembered of listings, and a stalled connection noticed."""
    if is_s3(url):
        attempts = {"total_max_attempts": 1, "mode": "standard"}
        config = {"retries": attempts, "connect_timeout": _CONNECT_TIMEOUT, "read_timeout": timeout()}
        return {"use_listings_cache": False, "config_kwargs": config}
    if is_http(url):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=timeout())
        return {"use_listings_cache": False, "client_kwargs": {"timeout": limits, "trust_env": True}}
    return {}
