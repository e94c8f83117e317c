"""Rows that can't be read and may be lost: they keep their slots, fully masked, and are counted and named."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

from open_lm.data.places import Place
from open_lm.data.stream import DamagedMemberError, DamagedShardError
from open_lm.storage import StorageError

_ABOUT_SHARDS = (DamagedShardError, FileNotFoundError, PermissionError, StorageError)
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ENOSPC, errno.EDQUOT}
"""Numbers of faults that other shards would meet as well, also where a storage's error has one as its cause."""

P = ParamSpec("P")


@dataclass(frozen=True)
class Lost:
    """Rows lost since the last look, and of each shard or member its name and why, a line that names it."""

    rows: int = 0
    why: tuple[tuple[str, str], ...] = ()


NOTHING_LOST = Lost()


class Losses:
    """What one process has lost.

    Args:
        shards: rows of shards that are gone, damaged or out of reach may be lost; faults of this machine are none of these.
        members: rows of single members that can't be read, too.
    """

    def __init__(self, shards: bool = False, members: bool = False):
        self._allowed = (*(_ABOUT_SHARDS if shards else ()), *((DamagedMemberError,) if members else ()))
        self._lost: set[Place] = set()
        self._rows, self._why = 0, list[tuple[str, str]]()

    def is_lost(self, place: Place) -> bool:
        """True for a shard that could not be read; it isn't tried again."""
        return place in self._lost

    def read(self, place: Place, read: Callable[P, None], *args: P.args, **named: P.kwargs) -> bool:
        """Whether a row of a shard could be read, by `read(*args)`. Raises what may not be lost."""
        if not self._lost or place not in self._lost:
            try:
                read(*args, **named)
                return True
            except (*self._allowed, OSError) as error:
                if not isinstance(error, self._allowed) or _of_the_machine(error):
                    raise OSError(_with_place(place, error)) from error
                why = _with_place(place, error)
                if isinstance(error, DamagedMemberError):
                    self._why.append((why, why))
                else:
                    self._why.append((str(place), why))
                    self._lost.add(place)
        self._rows += 1
        return False

    def take(self) -> Lost:
        """What was lost since the last time this was asked."""
        lost = Lost(self._rows, tuple(self._why))
        self._rows, self._why = 0, []
        return lost


def _of_the_machine(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            return True
        error = error.__cause__
    return False


def _with_place(place: Place, error: Exception) -> str:
    return str(error) if str(place) in str(error) else f"{place}: {error}"
