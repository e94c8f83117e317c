"""Tasks run in processes; each result comes once, errors end the map, killed workers' tasks are done again, nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from open_lm.executor import LocalExecutor


def square(task: int) -> int:
    return task * task


def fail_on_three(task: int) -> int:
    if task == 3:
        raise ValueError("--input-files three: is bad")
    return task


def die_once(task: tuple[int, str]) -> int:
    number, folder = task
    marker = Path(folder) / str(number)
    if number % 4 == 3 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_always(task: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


def sleep_long(task: int) -> int:
    time.sleep(60)
    return task


def test_one_worker_is_this_process() -> None:
    with LocalExecutor(1) as executor:
        assert list(executor.map(os.getppid, [])) == []
        assert list(executor.map(square, [3, 4])) == [(0, 9), (1, 16)]


@pytest.mark.slow
def test_every_task_has_its_result_once_and_workers_serve_several_maps() -> None:
    with LocalExecutor(2) as executor:
        executor.wait()
        for _ in range(2):
            assert sorted(executor.map(square, list(range(9)))) == [(i, i * i) for i in range(9)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_comes_through(workers: int) -> None:
    with pytest.raises(ValueError, match="three: is bad"), LocalExecutor(workers) as executor:
        list(executor.map(fail_on_three, list(range(9))))


@pytest.mark.slow
def test_a_killed_workers_task_is_done_again(tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        found = sorted(executor.map(die_once, [(i, str(tmp_path)) for i in range(9)]))
    assert found == [(i, i) for i in range(9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "7"]


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="killed 3 times in a row .*fewer --num-workers"), LocalExecutor(2) as executor:
        list(executor.map(die_always, [1, 2]))


@pytest.mark.slow
def test_leaving_by_an_exception_ends_the_workers_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), LocalExecutor(2) as executor:
        executor.wait()
        for _ in executor.map(square, [1, 2]):
            pass
        running = executor.map(sleep_long, [1, 2])
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        next(running)
    assert time.monotonic() - started < 20


def test_leaving_by_an_exception_ends_the_server_while_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_import.py").write_text(
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError), LocalExecutor(2, ["slow_import"]) as executor:
        executor.start()
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        raise ValueError("no room")
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


@pytest.mark.slow
def test_workers_die_with_the_first_process(repo: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys, time; sys.path[:0] = ['tests']\n"
        "from open_lm.executor import LocalExecutor\n"
        "from test_executor import sleep_with_pid\n"
        "list(LocalExecutor(2).map(sleep_with_pid, [sys.argv[1] + '/a', sys.argv[1] + '/b']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=repo)
    try:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        time.sleep(0.2)
        pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def sleep_with_pid(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def see(name: str) -> str | None:
    return os.environ.get(name)


@pytest.mark.slow
def test_workers_see_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalExecutor(2) as executor:
        executor.wait()  # the fork server is there, with the environment of now
    monkeypatch.setenv("OPENLM_TEST_VALUE", "late")
    with LocalExecutor(2) as executor:
        assert list(executor.map(see, ["OPENLM_TEST_VALUE"])) == [(0, "late")]
