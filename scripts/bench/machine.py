"""What a measurement was made on and with: processor, cores, memory, load, versions, commit, command."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sha_ni", "neon", "sve")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def warn_if_busy() -> None:
    """Say on stderr where others are at work."""
    load = os.getloadavg()[0]
    if load > cores() / 4:
        print(f"load average {load:.1f}: others are at work on this machine, the figures will be noisy", file=sys.stderr, flush=True)


def describe(repository: Path, versions: Mapping[str, str]) -> dict[str, Any]:
    """For the JSON of a benchmark; `versions` of the packages that were used."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", _in_repository(sys.argv[0], repository), *sys.argv[1:]]),
        "commit": _git(repository, "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git(repository, "status", "--porcelain")),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "versions": dict(versions),
    }


def _in_repository(path: str, repository: Path) -> str:
    absolute = Path(path).resolve()
    return str(absolute.relative_to(repository)) if absolute.is_relative_to(repository) else absolute.name


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True)
    return done.stdout.strip()


def _cpu() -> str:
    """The processor's name, and which of its extensions matter here."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"^model name\s*: (.*)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    known = set(flags.group(1).split()) if flags else set()
    return " ".join([name.group(1) if name else platform.machine(), *(e for e in _EXTENSIONS if e in known)])
