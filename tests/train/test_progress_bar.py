"""Commands on a pseudo-terminal: a bar is there, and spoils no line of the log."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_progress import seen

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d,\d\d:\d\d:\d\d \| \w+ \| .*")
HASTY = """import runpy, sys
from open_lm import progress
progress.BAR_AFTER, progress._BETWEEN_LOOKS, progress._QUIET = 0, 0.02, 0.01
sys.argv[:] = sys.argv[1:]
"""
"""Begins a program that shows what is quick, too."""


def on_terminal(command: list[str], env: dict[str, str], cwd: Path) -> str:
    """What a command that ends well writes to a pseudo-terminal that knows no width, such as one of a container."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    except OSError:  # the last process has closed it
        pass
    finally:
        os.close(ours)
    written = b"".join(parts).decode()
    assert process.wait() == 0, written
    return written


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2], ids=["python -m", "torchrun"])
def test_training_shows_a_bar_on_a_terminal(bench: Any, processes: int) -> None:
    program = bench.folder / "main.py"
    program.write_text(f"{HASTY}sys.argv[:0] = ['open_lm.main']\nrunpy.run_module('open_lm.main', run_name='__main__', alter_sys=True)\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    start = torchrun if processes else [sys.executable]
    held = str(bench.folder / "shards/shard-0000000.tar")
    command = [*start, str(program), *bench.flags("a", "--val-data", held, "--log-every-n-steps", "10", "--save-frequency", "0")]
    written = on_terminal(command, bench.env | {"NO_COLOR": "1"}, bench.folder)
    assert re.search(r"\rtraining \d+ % \|#* *\| \d+ of 30 steps, 0:00:\d\d (left|so far)", written)
    lines = seen(written)
    assert sum(" | INFO | " in line for line in lines) >= 10
    assert [line for line in lines if line and not LOG_LINE.fullmatch(line) and "OMP_NUM_THREADS" not in line and "***" not in line] == []
    assert "\r" not in bench.log("a")


@pytest.mark.slow
def test_other_commands_show_a_bar_on_a_terminal(bench: Any, repo: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"word {i} " * 40}) + "\n" for i in range(9000)))
    shards, tools = str(tmp_path / "shards"), repo / "datapreprocess"
    commands: dict[str, list[str]] = {
        "comparing": ["open_lm.shards.manifest", shards, "--verify", "--num-workers", "1"],
        "converting": [f"{tools}/convert_shards.py", "--input-dir", shards, "--output-dir", f"{tmp_path}/new", "--num-workers", "2"],
        "counting words": [f"{tools}/train_tokenizer.py", "--input-files", str(texts), "--output", f"{tmp_path}/tokenizer.json"],
    }
    slowly = "import time, open_lm.storage as s; fast = s.open_read; s.open_read = lambda *a, **b: (time.sleep(0.1), fast(*a, **b))[1]"
    for what, command in commands.items():
        run = f"runpy.run_{'path' if '/' in command[0] else 'module'}(sys.argv[0], run_name='__main__')"
        written = on_terminal([sys.executable, "-c", f"{HASTY}{slowly}\n{run}", *command], bench.env, tmp_path)
        assert re.search(rf"\r[^\r]*{what} \d+ % \|#* *\| \d+ of \d+ \w+, 0:00:\d\d (left|so far)", written), written
