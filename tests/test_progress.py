"""What takes long shows how far it has come: a bar on a terminal, which spoils no line; lines with the time left elsewhere."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest

from open_lm import progress
from open_lm.progress import Progress

BAR = re.compile(r"\d+ % \|#* *\| .*, \d+:\d\d:\d\d (left|so far)")


class Terminal(io.StringIO):
    """Of 80 columns, as far as it tells nothing else."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BAR_AFTER": 0.0, "LINE_AFTER": 0.05, "_BETWEEN_LOOKS": 0.02, "_QUIET": 0.01}.items():
        monkeypatch.setattr(progress, name, value)


def work(bar: Progress, steps: int = 10) -> None:
    for bar.done in range(1, steps + 1):
        time.sleep(0.03)


def seen(written: str) -> list[str]:
    """The lines that stand on a terminal in the end."""
    screen = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            text, *erased = part.split("\x1b[K")
            assert not any(erased[1:]), "two bars in one place"
            shown = text + (shown[len(text) :] if not erased else "") + "".join(erased)
        screen.append(shown)
    return screen


def test_a_bar_shows_the_work_and_the_work_inside_it_and_is_gone_in_the_end(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("training", 40, "steps", first=20) as bar:
        bar.done = 30
        with Progress("validation", 10, "batches") as inner:
            inner.done, end = 5, time.monotonic() + 20
            while "5 of 10" not in sys.stderr.getvalue() and time.monotonic() < end:  # drawn by a thread, in its own time
                time.sleep(0.01)
    written = sys.stderr.getvalue()
    assert re.search(r"\rtraining 75 %, validation 50 % \|#+ +\| 5 of 10 batches, 0:00:0\d left\x1b\[K", written)
    assert max(map(len, re.split(r"\r|\x1b\[K", written))) < 80
    assert seen(written) == [""]


def test_log_lines_stand_above_the_bar(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with Progress("reading", 10, "files") as bar:
        for bar.done in range(10):
            time.sleep(0.03)
            logging.warning("a line")
            progress.say("another")
    assert BAR.search(sys.stderr.getvalue())
    assert seen(sys.stderr.getvalue()) == [*["a line", "another"] * 10, ""]


def test_without_a_terminal_lines_tell_the_time_left_at_times_further_and_further_apart(
    hasty: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO), Progress("reading", 100, "files") as bar:
        work(bar, 20)
    lines = [record.getMessage() for record in caplog.records]
    assert 2 <= len(lines) <= 5
    assert all(re.fullmatch(r"reading \d+ %: \d+ of 100 files, 0:00:0\d (left|so far)", line) for line in lines)
    assert progress.LINE_AFTER <= 30
    assert not any(mark in "".join(capsys.readouterr()) for mark in "\r\x1b")


def test_other_processes_of_torchrun_show_nothing(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("RANK", "1")
    with Progress("reading", 10, "files") as bar:
        work(bar)
    assert sys.stderr.getvalue() == ""


def test_an_error_takes_the_bar_away_and_what_is_counted_meanwhile_is_kept(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError), Progress("reading", 400, "files") as bar:
        for _ in range(200):
            bar.done += 1
            time.sleep(0.001)
        assert bar.done == 200
        raise ValueError
    print("the error", file=sys.stderr)
    time.sleep(0.1)
    assert BAR.search(sys.stderr.getvalue()) and seen(sys.stderr.getvalue()) == ["the error", ""]
