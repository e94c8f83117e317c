"""A peer's own environment: in the user's cache folder under the hash of its requirements, made once, and whole when its stamp is there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


def cache_folder() -> Path:
    """Where this project keeps what it can make again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("OPENLM_CACHE") or Path(base) / "open_lm")


def environment(requirements: Path, on_ours: bool = False) -> Path:
    """The Python of the environment of a file `requirements-NAME.txt`, made where it is missing.

    Args:
        on_ours: with the packages of this Python below it, so that it holds only what they lack.

    Raises:
        RuntimeError: packages can't be installed.
    """
    below = sysconfig.get_path("purelib") if on_ours else ""
    content = requirements.read_bytes() + below.encode()
    name, key = requirements.stem.removeprefix("requirements-"), hashlib.sha256(content).hexdigest()[:16]
    folder = cache_folder() / f"{name}-{key}"
    python, stamp = folder / "bin/python", folder / ".openlm-stamp"
    if not stamp.exists():
        venv.create(folder, with_pip=True, clear=True)
        if on_ours:
            here = subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
            )
            Path(here.stdout.strip(), "below.pth").write_text(below + "\n")
        install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}'s environment can't be made: {done.stderr.strip()[-1000:]}")
        stamp.write_text(key)
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Of some packages in an environment."""
    code = "import sys, importlib.metadata as m, json; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    command: list[str | Path] = [python, "-c", code, *packages]
    found: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found
