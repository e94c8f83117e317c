"""How commands end: by signals, by errors, under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from open_lm import command_line

PROGRAM = """
from open_lm.command_line import end_on_signals
end_on_signals(__name__, "; go on")
import contextlib, time
def main():
    print("ready", flush=True)
    {body}
try:
    main()
finally:
    print("tidied", flush=True)
"""
SWALLOWS = "try:\n    import time; time.sleep(1.5)\nexcept BaseException:\n    raise ImportError('lost')\n"


def start(repo: Path, folder: Path, body: str) -> subprocess.Popen[str]:
    (folder / "slow_import.py").write_text(SWALLOWS)
    environment = {"PYTHONPATH": f"{repo}:{folder}", "PATH": os.environ["PATH"]}
    (folder / "program.py").write_text(PROGRAM.format(body=body))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "program.py"], cwd=folder, env=environment, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    return process  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("body", "out"),
    [
        ("time.sleep(60)", "tidied\n"),
        ("from slow_import import x", ""),
        ("exec('import slow_import\\ntime.sleep(60)', {'__name__': 'open_lm.x', 'time': time})", "tidied\n"),
        ("class A:\n        def __del__(self): time.sleep(1)\n    A(); time.sleep(60)", "tidied\n"),
    ],
    ids=["at work", "its own import", "a library's import that swallows everything", "a destructor"],
)
def test_a_signal_ends_a_command_in_one_line(repo: Path, tmp_path: Path, body: str, out: str, number: signal.Signals) -> None:
    process = start(repo, tmp_path, body)
    process.send_signal(number)
    told, error = process.communicate(timeout=20)
    assert (process.returncode, error, told) == (128 + number, f"stopped by {number.name}; go on\n", out)


@pytest.mark.slow
def test_a_call_that_never_comes_back_ends_too_and_a_second_sigint_ends_tidying(repo: Path, tmp_path: Path) -> None:
    process = start(repo, tmp_path, "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {2}); time.sleep(60)")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (130, "stopped by SIGINT; go on\n")
    process = start(repo, tmp_path, "with contextlib.ExitStack() as stack: stack.callback(time.sleep, 60); time.sleep(60)")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(5) == 130


def test_every_command_line_asks_for_it_before_it_imports_anything_of_ours(repo: Path) -> None:
    files = [path for folder in ("datapreprocess", "eval", "scripts") for path in sorted((repo / folder).glob("*.py"))]
    for path in (*files, repo / "open_lm/main.py", repo / "open_lm/shards/manifest.py"):
        imports = [line for line in path.read_text().splitlines() if line.startswith(("from open_lm", "import open_lm", "end_on_signals("))]
        assert "end_on_signals" in imports[0] and imports[1].startswith("end_on_signals(__name__"), path


@pytest.mark.slow
@pytest.mark.parametrize("command", [["scripts/generate.py"], ["eval/eval_openlm_ckpt.py"], ["-m", "open_lm.main"], ["scripts/report.py"]])
def test_commands_end_in_one_line_while_they_import(repo: Path, command: list[str]) -> None:
    words = [sys.executable, "-X", "importtime", *command, "--help"]
    process = subprocess.Popen(words, cwd=repo, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    lines = iter(process.stderr)
    assert any(line.endswith(" open_lm.command_line\n") for line in lines) and next(lines)
    process.send_signal(signal.SIGINT)
    told = [line for line in lines if not line.startswith("import time:")]
    assert (process.wait(20), told) == (130, ["stopped by SIGINT\n"])


def test_torchruns_summary_gets_the_words_and_stderr_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.end(2, "no room") == 2
    assert capsys.readouterr().err == "no room\n"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert command_line.end(2, "no room") == 2
    assert capsys.readouterr().err == ""
    assert json.loads((tmp_path / "error.json").read_text())["message"]["extraInfo"]["py_callstack"] == "no room"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    command_line.end(1, "no room")
    assert capsys.readouterr().err == "no room\n"  # an attempt that the summary will not be of
