"""Documents of a file with their ids, one after another; for tools that write documents again.

Memory: a batch of rows, or a few times the longest line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from open_lm.storage import StorageError
from open_lm.storage.yaml_json import parse_line
from open_lm.tokens.reading.inputs import InputFile, Part
from open_lm.tokens.reading.lines import Lines
from open_lm.tokens.reading.reader import Reader
from open_lm.tokens.reading.stored import check_unchanged, damaged_table, open_stored

_ROWS = 256


class Record(NamedTuple):
    """A document: its id, None where none was asked for, and its text. `text` None: no document, `id` says why and where."""

    id: str | None
    text: str | None


def records(file: InputFile, text_key: str, id_key: str | None) -> Iterator[Record]:
    """The documents of a file.

    Args:
        id_key: where the id is; None to go without. A file that is one document has its name as id.

    Raises:
        ValueError: a damaged file; a table without such a column.
        OSError: the storage fails.
    """
    if file.holds == "document":
        yield from _document(file, id_key)
    elif file.holds == "table":
        yield from _rows(file, text_key, id_key)
    else:
        yield from _lines(file, text_key, id_key)


def _document(file: InputFile, id_key: str | None) -> Iterator[Record]:
    with Reader("text") as reader:
        for batch in reader.batches(Part(file)):
            yield from (Record(str(refused), None) for refused in batch.refused)
            yield from (Record(file.path.rpartition("/")[2] if id_key else None, text) for text in batch.texts)


def _lines(file: InputFile, text_key: str, id_key: str | None) -> Iterator[Record]:
    source = Lines(file)
    number = 0
    try:
        for _, lines in source.until(None):
            for line in lines:
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line or line.isspace():
                    continue
                try:
                    yield _record(parse_line(line), text_key, id_key, f"{file.path}, line {number}")
                except ValueError as error:
                    yield Record(f"{file.path}, line {number}: {error}", None)
        source.check_unchanged()
    finally:
        source.close()


def _rows(file: InputFile, text_key: str, id_key: str | None) -> Iterator[Record]:
    """Columns are read by name; a dot leads into a column of structures."""
    with _table(file) as table:
        columns = {key.split(".")[0]: flag for flag, key in (("--text-key", text_key), ("--id-key", id_key)) if key}
        names = table.schema_arrow.names
        for name, flag in columns.items():
            if name not in names:
                raise ValueError(f"{flag} {name}: {file.path} has no such column; it has {', '.join(names)}")
        row = 0
        for batch in table.iter_batches(_ROWS, columns=list(columns), use_threads=False):
            for value in batch.to_pylist():
                row += 1
                yield _record(value, text_key, id_key, f"{file.path}, row {row}")


@contextlib.contextmanager
def _table(file: InputFile) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f'--input-files {file.path}: Parquet needs pyarrow; pip install "open_lm[parquet]"') from None
    raw = open_stored(file)
    try:
        yield pyarrow.parquet.ParquetFile(raw, buffer_size=1 << 20)
        check_unchanged(file, raw)
    except StorageError:
        raise
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise damaged_table(file, raw, error) from None
    finally:
        raw.close()


def _record(value: Any, text_key: str, id_key: str | None, place: str) -> Record:
    found, text = _inner(value, text_key)
    if not found or text is None:
        return Record(f"{place}: has no {text_key!r}", None)
    if not isinstance(text, str):
        return Record(f"{place}: has a {text_key!r} of type {type(text).__name__}, not a text", None)
    if id_key is None:
        return Record(None, text)
    _, name = _inner(value, id_key)
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        return Record(f"{place}: has no id in {id_key!r}", None)
    return Record(str(name), text)


def _inner(value: Any, key: str) -> tuple[bool, Any]:
    for step in key.split("."):
        if not isinstance(value, dict) or step not in value:
            return False, None
        value = value[step]
    return True, value
