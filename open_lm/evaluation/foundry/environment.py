"""Where LLM Foundry's environment is, and how a command comes to run in it.

The environment lies in the user's cache folder under the hash of its requirements (`scripts/setup.sh foundry` makes it there), so
that checkouts share it and a change of the requirements makes another one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[3]
SIZE = "about 7 GB on the disk, a few minutes"


def inside() -> bool:
    """Whether this process runs where LLM Foundry is installed."""
    return importlib.util.find_spec("llmfoundry") is not None


def find_python() -> Path | None:
    """The Python of the environment that fits the requirements of this checkout, or None where it is not built."""
    requirements = ROOT / "requirements-foundry.txt"
    if not requirements.is_file():
        return None
    name = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    folder = _cache() / f"foundry-{name}"
    stamp = folder / ".openlm-stamp"  # written last, so that an environment half built is none
    whole = stamp.is_file() and stamp.read_text().strip() == name
    return folder / "bin/python" if whole else None


def _cache() -> Path:
    """As scripts/setup.sh has it."""
    if os.environ.get("OPENLM_CACHE"):
        return Path(os.environ["OPENLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "open_lm"


def build() -> Path:
    """Build the environment where it is not there, and give its Python.

    Raises:
        ValueError: this is no checkout, or the build failed.
    """
    script = ROOT / "scripts/setup.sh"
    if not script.is_file():
        raise ValueError("--build-env: needs OpenLM's repository (scripts/setup.sh); an installed package doesn't hold it")
    environment = {**os.environ, "PYTHON": os.environ.get("PYTHON", sys.executable)}
    done = subprocess.run(["bash", str(script), "foundry"], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ValueError("--build-env: scripts/setup.sh foundry failed (see above); it needs the network and 7 GB of disk")
    return Path(done.stdout.split()[-1])


def missing() -> str:
    """What to do where the environment is not built, in one line."""
    return (
        "--backend llm-foundry: its environment is not built; build it once with `scripts/setup.sh foundry` "
        f"or --build-env ({SIZE}), or use --backend native"
    )


def run_there(python: Path, arguments: Sequence[str], device: str | None = None) -> NoReturn:
    """Go on as the evaluation command with these arguments there.

    Args:
        device: the --device among the arguments. Of a single process Composer takes the first GPU that it sees, so that a GPU with a
            number is made the only one.
    """
    # Started by torchrun, each process starts its own there, and they find each other by the variables that they inherit.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false")}
    environment.pop("PYTHONPATH", None)  # packages of this environment would stand before those of the other
    kind, _, index = (device or "").partition(":")
    if kind == "cuda" and index.isdigit() and "LOCAL_RANK" not in os.environ:
        seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        if seen and int(index) >= len(seen):
            raise ValueError(f"--device {device}: CUDA_VISIBLE_DEVICES has {len(seen)} GPUs; give a smaller number")
        environment["CUDA_VISIBLE_DEVICES"] = seen[int(index)] if seen else index
        arguments = [*arguments, "--device", "cuda"]
    sys.stdout.flush()
    os.execve(python, [str(python), str(ROOT / "eval/eval_openlm_ckpt.py"), *arguments], environment)  # it alone answers signals then
