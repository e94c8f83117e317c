"""The documents in rows of shards, from the provenance that the preprocessor left beside them: see `open_lm.shards.provenance`."""

from __future__ import annotations

from dataclasses import dataclass

from open_lm import storage
from open_lm.shards import provenance
from open_lm.shards.provenance import Provenance


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a row that come from one document.

    Args:
        begin, end: tokens [begin, end) of the row.
        file: the input file, as the preprocessor was given it.
        at: where the document begins in the file's text: byte of its line, 0 for a file that is one document, row of a table.
        start, stop: tokens [start, stop) of the document, its end of text included.
    """

    begin: int
    end: int
    file: str
    at: int
    start: int
    stop: int

    @property
    def place(self) -> str:
        """Where the document begins, in words."""
        return f"row {self.at}" if self.file.endswith(".parquet") else f"byte {self.at}"


class Documents:
    """Looks up the documents of rows; keeps what it has read of each shard."""

    def __init__(self) -> None:
        self._shards: dict[str, Provenance | str] = {}
        self._files: dict[str, list[str]] = {}

    def of_row(self, shard: str, sequences: int, sequence: int, begin: int, end: int) -> tuple[Piece, ...] | str:
        """The pieces of tokens [begin, end) of one sequence; or in words why nothing is known of them.

        Args:
            shard: path or URL.
            sequences: of the shard.
        """
        if shard not in self._shards:
            self._shards[shard] = self._read(shard, sequences)
        known = self._shards[shard]
        if isinstance(known, str):
            return known
        files, pieces, first = self._files[_folder(shard)], [], 0
        for file, at, start, length in known.of_sequence(sequence):
            low, high = max(first, begin), min(first + length, end)
            if low < high:
                name = files[file] if file < len(files) else f"input file {file}"
                pieces.append(Piece(low - begin, high - begin, name, at, start + low - first, start + high - first))
            first += length
        return tuple(pieces)

    def _read(self, shard: str, sequences: int) -> Provenance | str:
        folder = _folder(shard)
        consumer = storage.parent(shard).rstrip("/").rpartition("/")[2]
        name = shard.rpartition("/")[2].removesuffix(".tar") + ".npz"
        url = storage.join(folder, f"{consumer}/{name}")
        try:
            found = provenance.from_bytes(storage.read_bytes(url))
            if folder not in self._files:
                self._files[folder] = provenance.files_from_bytes(storage.read_bytes(storage.join(folder, provenance.FILES)))
        except FileNotFoundError:
            return f"no provenance beside the shards ({url}): which documents these are is not known"
        except (OSError, ValueError, KeyError) as error:
            return f"the provenance {url} can't be read: {error}"
        if len(found.ends) != sequences:
            return f"the provenance {url} belongs to another shard: it has {len(found.ends)} sequences, the shard {sequences}"
        return found


def _folder(shard: str) -> str:
    return storage.join(storage.parent(storage.parent(shard)), provenance.FOLDER)
