"""Rows of Parquet tables to documents. The only file that knows pyarrow, which is an optional extra.

A document is addressed by the number of its row. Memory: the rows of about 2 MiB of text, or the longest text twice.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from open_lm.storage import StorageError
from open_lm.tokens.reading.batch import Found, Refused, named
from open_lm.tokens.reading.inputs import InputFile, Part
from open_lm.tokens.reading.lines import LARGE, Growth
from open_lm.tokens.reading.stored import check_unchanged, damaged_table, open_stored

_BATCH_BYTES = 2 << 20
_BATCH_ROWS = 4096
_BUFFER = 1 << 20


@functools.lru_cache(maxsize=64)
def row_groups(file: InputFile) -> int:
    """How many row groups a table has. Raises as `read_rows`."""
    with _opened(file) as table:
        return int(table.num_row_groups)


def read_rows(part: Part, key: str, large: Callable[[int], None] | None) -> Iterator[Found]:
    """The texts of a column (a dot leads into an inner one) in row groups `start <= i < stop`, some at a time.

    Raises:
        ValueError: no such column; one that holds no text; a damaged file; pyarrow is missing.
        OSError: the storage fails.
    """
    steps = [step for step in key.split(".") if step]
    with _opened(part.file) as table:
        _check_column(part.file, table.schema_arrow, key, steps)
        stop = table.num_row_groups if part.stop is None else min(part.stop, table.num_row_groups)
        row = sum(table.metadata.row_group(i).num_rows for i in range(part.start))
        for group in range(part.start, stop):
            size = _rows_at_once(table.metadata.row_group(group), ".".join(steps))
            with contextlib.closing(table.iter_batches(size, [group], [".".join(steps)], use_threads=False)) as some:
                for rows in some:
                    count = rows.num_rows
                    column = _inner(rows.column(0), steps[1:])
                    del rows
                    _report(column, large, part.file, row)
                    found = _texts(column, part.file, row, key)
                    del column
                    yield found
                    row += count


@contextlib.contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f'--input-files {file.path}: Parquet needs pyarrow; pip install "open_lm[parquet]"') from None
    raw = open_stored(file)
    try:
        yield pyarrow.parquet.ParquetFile(raw, buffer_size=_BUFFER)
        check_unchanged(file, raw)
    except StorageError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        check_unchanged(file, raw)
        raise damaged_table(file, raw, error) from None
    finally:
        raw.close()


def _check_column(file: InputFile, schema: Any, key: str, steps: list[str]) -> None:
    import pyarrow.types as types

    names = [field.name for field in schema]
    kind: Any = None
    for step in steps:
        fields = {field.name: field.type for field in (schema if kind is None else _fields(kind))}
        if step not in fields:
            raise ValueError(f"--text-key {key}: {file.path} has no such column; it has {', '.join(names)}")
        kind = fields[step]
    if kind is not None and types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary, types.is_null)
    if not any(test(kind) for test in tests if kind is not None):
        raise ValueError(f"--text-key {key}: in {file.path} that is a column of {kind}, not of texts; it has {', '.join(names)}")


def _fields(kind: Any) -> list[Any]:
    import pyarrow.types as types

    return [kind.field(i) for i in range(kind.num_fields)] if types.is_struct(kind) else []


def _rows_at_once(group: Any, path: str) -> int:
    sizes = [group.column(i).total_uncompressed_size for i in range(group.num_columns) if group.column(i).path_in_schema == path]
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, sum(sizes))))


def _inner(column: Any, steps: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as compute

    for step in steps:
        column = compute.struct_field(column, step)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _report(column: Any, large: Callable[[int], None] | None, file: InputFile, row: int) -> None:
    """Tell the listener of texts beyond 8 MiB."""
    import pyarrow.compute as compute

    if large is None or column.nbytes < LARGE:
        return
    for index, size in enumerate(compute.binary_length(column).to_pylist()):
        Growth(large, lambda index=index: named(file, 0, row + index + 1)).reached(size or 0)  # type: ignore[misc]


def _texts(column: Any, file: InputFile, row: int, key: str) -> Found:
    import pyarrow as pa

    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
    texts: list[str] = []
    at: list[int] = []
    refused: list[Refused] = []
    for number, value in enumerate(values, row):
        try:
            text = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            refused.append(Refused(file, number, f"is not UTF-8: {error.reason}", number + 1))
            continue
        if text is None:
            refused.append(Refused(file, number, f"has no {key!r}", number + 1))
        else:
            texts.append(text)
            at.append(number)
    return texts, at, refused
