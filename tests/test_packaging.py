"""A wheel installed elsewhere, and an editable install, find the named models."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CODE = """
import open_lm
from open_lm.model.zoo import get_model_config, named_models
print(len(named_models()), get_model_config("open_lm_1b").n_layers, open_lm.__file__)
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_installed_elsewhere_it_finds_the_named_models(repo: Path, tmp_path: Path, editable: bool) -> None:
    copy = tmp_path / "copy"
    run("git", "clone", "--quiet", repo, copy, cwd=tmp_path)
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=False)
    python = tmp_path / "env/bin/python"
    # the requirements are those of this environment; only the project itself is installed
    run(python, "-m", "pip", "install", "-q", "--no-deps", *(["-e"] if editable else []), copy, cwd=tmp_path)
    (next((tmp_path / "env/lib").glob("python*")) / "site-packages/main-environment.pth").write_text(site_packages())
    count, layers, place = run(python, "-c", CODE, cwd=tmp_path).split()
    assert (int(count), int(layers)) == (16, 24)
    assert str(copy if editable else tmp_path / "env") in place


def site_packages() -> str:
    import torch

    return str(Path(torch.__file__).parents[1])


def test_requirements_have_lower_bounds_and_constraints_are_exact(repo: Path) -> None:
    names = [line for line in (repo / "requirements.txt").read_text().splitlines() if line and not line.startswith(("#", "-"))]
    assert all(">=" in line for line in names)
    pins = (repo / "constraints.txt").read_text().splitlines()
    assert all("==" in line for line in pins if line and not line.startswith("#"))
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    assert {line.split(">=")[0].lower().replace("_", "-") for line in names} <= pinned
    assert "torch==2.13.0" in pins
    assert sys.version_info >= (3, 11)
