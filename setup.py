"""Packaging. The named model sizes (`model_configs/`) go into the wheel through the link `open_lm/model_configs`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def requirements(name: str) -> list[str]:
    """The requirement lines of a file, without comments and includes."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


version = re.search(r'__version__ = "(.+)"', (ROOT / "open_lm/__init__.py").read_text(encoding="utf-8"))
assert version is not None

setup(
    name="open_lm",
    version=version.group(1),
    description="A small, exact, fast trainer for language models of 11M to 7B parameters",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["open_lm", "open_lm.*"]),
    package_data={"open_lm": ["model_configs/*.json"]},
    install_requires=requirements("requirements.txt"),
    extras_require={
        "parquet": ["pyarrow>=18"],
        "gpu": ["xformers>=0.0.30"],
        "eval": ["lm-eval>=0.4.9"],
        "dev": requirements("requirements-dev.txt"),
    },
)
