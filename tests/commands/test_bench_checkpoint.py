"""The run states' benchmark runs from end to end on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_measures_and_leaves_nothing_behind(repo: Path, tmp_path: Path) -> None:
    config = {"hidden_dim": 32, "n_layers": 2, "n_heads": 4, "seq_len": 32, "vocab_size": 64}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    (tmp_path / "disk").mkdir()
    script = repo / "scripts/bench/checkpoint.py"
    flags = ["--model", str(tmp_path / "tiny.json"), "--repeats", "2", "--folder", str(tmp_path / "disk"), "--json", "out.json"]
    done = subprocess.run([sys.executable, script, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out.json").read_text())
    assert list(figures["seconds"]) == ["copy", "sync", "async, the first", "async", "async, whole", "check", "load"]
    assert figures["written_bytes"] > figures["state_bytes"] > 0
    assert "| async | " in done.stdout and "| copy | " in done.stdout
    assert not list((tmp_path / "disk").iterdir())
