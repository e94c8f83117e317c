"""Tasks run in processes; each result comes once, an error ends the map, a dead worker is an error and no hang."""

from __future__ import annotations

import os

import pytest

from open_lm.tokens.executor import LocalExecutor


def square(task: int) -> int:
    return task * task


def fail_on_three(task: int) -> int:
    if task == 3:
        raise ValueError("--input-files three: is bad")
    return task


def die_on_three(task: int) -> int:
    if task == 3:
        os._exit(9)
    return task


def test_one_worker_is_this_process() -> None:
    assert list(LocalExecutor(1).map(os.getppid, [])) == []
    assert list(LocalExecutor(1).map(square, [3, 4])) == [(0, 9), (1, 16)]


@pytest.mark.slow
def test_every_task_has_its_result_once() -> None:
    assert sorted(LocalExecutor(2).map(square, list(range(9)))) == [(i, i * i) for i in range(9)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_comes_through(workers: int) -> None:
    with pytest.raises(ValueError, match="three: is bad"):
        list(LocalExecutor(workers).map(fail_on_three, list(range(9))))


@pytest.mark.slow
def test_a_dead_worker_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="worker process died"):
        list(LocalExecutor(2).map(die_on_three, list(range(9))))
