"""Where a shard lies: a local path, an url, or `pipe:` and a command whose output is the shard."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from open_lm import storage
from open_lm.data.command_output import CommandOutput

_PIPE = "pipe:"
_ADDRESS = re.compile(r"(?<=//)\[[0-9A-Fa-f:.]*\]")


class Remote(str):
    """A shard that is not a local file: an url, or `pipe:COMMAND`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The shard's file name; of a command the last word of it that names a tar file."""
        if self.is_pipe:
            words = self.command
            return next((word.rpartition("/")[2] for word in reversed(words) if word.endswith(".tar")), str(self))
        path = urlsplit(self).path if self.startswith(("http://", "https://")) else str(self)
        return path.rpartition("/")[2]

    @property
    def is_pipe(self) -> bool:
        """True for a command."""
        return self.startswith(_PIPE)

    @property
    def command(self) -> list[str]:
        """The words of a command. Raises ValueError where a quotation has no end."""
        try:
            words = shlex.split(self[len(_PIPE) :])
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from None
        if not words:
            raise ValueError(f"{self}: names no command; write pipe:COMMAND")
        return words


Place = Path | Remote
"""Of a shard. Both kinds have a `name`."""


def split_parts(names: str) -> list[str]:
    """The parts of `a::b`; the colons of an address such as `http://[::1]/` part nothing."""
    kept = _ADDRESS.sub(lambda match: match[0].replace(":", "\0"), names)
    return [part.replace("\0", ":") for part in kept.split("::")]


def is_elsewhere(name: str) -> bool:
    """True for what is no local path."""
    return name.startswith(_PIPE) or storage.is_remote(name)


def place_of(name: str) -> Place:
    """The place of a name or url."""
    return Remote(name) if is_elsewhere(name) else storage.local_path(name)


def folder_of(place: Place) -> str:
    """The folder that a shard lies in, as a path or url; "" for a command."""
    if isinstance(place, Remote):
        return "" if place.is_pipe else storage.parent(place)
    return os.path.dirname(place) or "."  # noqa: PTH120 (a third of the time of a Path's parent)


def open_place(place: Place) -> IO[bytes]:
    """The bytes of a shard from its front; close it, wherever it stands.

    Raises (also while it is read) OSError, and ValueError for a place that can't work.
    """
    if isinstance(place, Remote):
        return CommandOutput(place, place.command) if place.is_pipe else storage.open_read(place)
    return open(place, "rb")
