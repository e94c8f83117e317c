"""How a command ends: by a signal or an error, in one line on stderr, or under torchrun in its summary. Every command line asks for it.

Ctrl-C and SIGTERM end it with exit code 130 or 143, at whatever moment. The main thread leaves by an exception, so that what is open is
closed and what is half written is removed on the way. Where an exception would be lost or do harm, in an import or in what Python calls by
itself, it is raised after that. A thread sees to it, and ends the process where it takes too long, as in a call that doesn't come back
to Python, and at a second SIGINT.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE = 3.0
"""Seconds in which the main thread has to hear of a signal."""
_TIDYING = 60.0
"""Seconds in which it has to be gone then."""
_IMPORT_FIRST = ("__main__", "open_lm.evaluation.command")
"""Modules that import what they need before they open anything: there is nothing to tidy then."""

_code = 0  # exit code of the signal that came
_again = False  # whether the exception is to be raised once more
_hint = ""


class Interrupted(SystemExit):
    """A signal, on its way out of the command."""


def end_on_signals(module: str, hint: str = "") -> None:
    """From here on signals end this process in one line; call it before anything heavy is imported.

    Args:
        module: `__name__` of the caller: nothing is done where it is imported, not run.
        hint: what the line says after "stopped by SIGINT".
    """
    global _hint
    if module != "__main__":
        return
    _hint = hint
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's & have it
            signal.signal(number, _stop)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    sys.unraisablehook, sys.excepthook = _unraisable, _uncaught
    atexit.register(_leave)  # the first one registered is the last one called
    os.register_at_fork(after_in_child=forked)


def hint(words: str) -> None:
    """What the line of a signal says from now on after "stopped by SIGINT"."""
    global _hint
    _hint = words


def end(code: int, words: str = "", together: bool = False) -> int:
    """Tell why this process ends; returns its exit code.

    Args:
        together: all processes end for the same reason, and the first one tells it.
    """
    launched = "TORCHELASTIC_ERROR_FILE" in os.environ
    other = os.environ.get("LOCAL_RANK" if launched else "RANK", "0") != "0"
    if words and not (together and other):
        tell_launcher(words)
        if not launched or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"):
            print(words, file=sys.stderr, flush=True)  # torchrun's summary is of its last attempt
    if launched and other:
        # where the first process of this machine ends too, torchrun ends this one; with 0 it isn't listed as one more failure
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        time.sleep(30 if together else _GRACE)
    return code


def tell_launcher(words: str) -> None:
    """Put words into the summary that torchrun prints of a process which ends with another code than 0."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        told = {"message": words, "extraInfo": {"py_callstack": words, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": told}, file)


def forked() -> None:
    """A child, such as a data worker, has no part in its parent's signals; a terminal's SIGINT, sent to all, is the parent's to answer."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    global _code, _again
    if not _code:
        _code = 128 + number
        _say(number)
    elif not _again:
        return
    importer = _importer(frame)
    if importer is not None and importer.f_globals["__name__"] in _IMPORT_FIRST:
        os._exit(_code)
    _again = importer is not None
    if not _again:
        raise Interrupted(_code)


def _importer(frame: FrameType | None) -> FrameType | None:
    """Who waits for the import that a frame is in; the outermost one."""
    importer, inner = None, False
    while frame:
        importing = frame.f_code.co_filename.startswith("<frozen importlib")
        if inner and not importing:
            importer = frame
        frame, inner = frame.f_back, importing
    return importer


def _unraisable(told: Any) -> None:
    global _again
    if isinstance(told.exc_value, Interrupted):
        _again = True
    else:
        sys.__unraisablehook__(told)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What a command doesn't catch: files that can't be written or read are told in a line, all else is a fault of ours."""
    if isinstance(error, OSError):
        end(1, f"{error}{_hint if error.errno == errno.ENOSPC else ''}")
    elif "TORCHELASTIC_ERROR_FILE" in os.environ:
        end(1, "".join(traceback.format_exception(kind, error, trace)))
    else:
        sys.__excepthook__(kind, error, trace)


def _say(number: int) -> None:
    """The line, from one of several processes (torchrun says of its SIGTERM itself); nothing is heard of the way out."""
    if os.environ.get("RANK", "0") == "0" and not (number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ):
        line = f"stopped by {signal.Signals(number).name}{_hint}\n"
        with contextlib.suppress(OSError):
            os.write(2, (f"\n{line}" if os.isatty(2) else line).encode())  # a terminal has a bar or ^C there
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _watch(reading: int) -> None:
    """See that the process ends; runs in a thread."""
    came, since, main = 0, 0.0, threading.main_thread().ident
    assert main
    while True:
        ready, _, _ = select.select([reading], [], [], 0.1 if came else None)
        for number in os.read(reading, 64) if ready else b"":
            if came and number == signal.SIGINT:
                _end(came)
            if not came and number in SIGNALS and signal.getsignal(number) is _stop:
                came, since = number, time.monotonic()
        if came and time.monotonic() - since > (_TIDYING if _code else _GRACE):
            _end(came)
        if _again and not _importer(sys._current_frames().get(main)):
            signal.pthread_kill(main, signal.SIGTERM)


def _end(number: int) -> None:
    if not _code:
        _say(number)
    for child in multiprocessing.active_children() if (multiprocessing := sys.modules.get("multiprocessing")) else ():
        child.terminate()
    os._exit(128 + number)


def _leave() -> None:
    """The end of the process, whatever became of the exception; a signal that comes now finds the command finished."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if _code:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(_code)
