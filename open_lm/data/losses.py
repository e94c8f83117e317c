"""Rows that can't be read and may be lost: they keep their slots, fully masked, and are counted and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

from open_lm.data.places import Place
from open_lm.data.stream import DamagedMemberError, DamagedShardError

P = ParamSpec("P")


@dataclass(frozen=True)
class Lost:
    """Rows lost since the last look, and why, a line for each shard or member."""

    rows: int = 0
    why: tuple[str, ...] = ()


NOTHING_LOST = Lost()


class Losses:
    """What one process has lost.

    Args:
        shards: rows of shards that can't be read may be lost.
        members: rows of single members that can't be read, too.
    """

    def __init__(self, shards: bool = False, members: bool = False):
        self._allowed = (*((DamagedShardError, OSError) if shards else ()), *((DamagedMemberError,) if members else ()))
        self._lost: set[Place] = set()
        self._rows, self._why = 0, list[str]()

    def is_lost(self, place: Place) -> bool:
        """True for a shard that could not be read; it isn't tried again."""
        return place in self._lost

    def read(self, place: Place, read: Callable[P, None], *args: P.args, **named: P.kwargs) -> bool:
        """Whether a row of a shard could be read, by `read(*args)`. Raises what may not be lost."""
        if not self._lost or place not in self._lost:
            try:
                read(*args, **named)
                return True
            except self._allowed as error:
                self._why.append(str(error))
                if not isinstance(error, DamagedMemberError):
                    self._lost.add(place)
        self._rows += 1
        return False

    def take(self) -> Lost:
        """What was lost since the last time this was asked."""
        lost = Lost(self._rows, tuple(self._why))
        self._rows, self._why = 0, []
        return lost
