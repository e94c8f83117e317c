"""An input file's stored bytes: opened, and held to what was listed. Errors name the file and the remedy in one line."""

from __future__ import annotations

import os
from typing import IO

from open_lm import storage
from open_lm.tokens.reading.inputs import InputFile


def open_stored(file: InputFile) -> IO[bytes]:
    """Open a file for reading, seekable. A remote one is compared with its listing at the end only, which costs a request.

    Raises:
        ValueError: it is gone, may not be read, or is no longer what was listed.
        OSError: the storage fails.
    """
    try:
        raw = storage.open_read(file.path)
    except OSError as error:
        raise named_error(file, error) from None
    try:
        if not storage.is_remote(file.path):
            check_unchanged(file, raw)
    except BaseException:
        raw.close()
        raise
    return raw


def check_unchanged(file: InputFile, raw: IO[bytes]) -> None:
    """Compare an open file with its listing: size, and modification time of a local file, version of a remote one.

    Raises:
        ValueError: they differ, or it is gone.
        OSError: the storage fails.
    """
    try:
        if storage.is_remote(file.path):
            now = storage.stat(file.path)
            size, stamp = now.size, now.stamp
        else:
            status = os.fstat(raw.fileno())
            size, stamp = status.st_size, str(status.st_mtime_ns)
    except OSError as error:
        raise named_error(file, error) from None
    if size != file.size or (stamp != file.stamp and file.has_version):
        raise ValueError(f"--input-files {file.path}: changed while it was read; start again when nothing writes to it")


def damaged_table(file: InputFile, raw: IO[bytes], error: Exception) -> ValueError:
    """Of a file that pyarrow can't read."""
    raw.seek(0)
    why = " ".join(str(error).split())
    damaged = f"is no Parquet file or a damaged one ({why}); fetch it again"
    return ValueError(f"--input-files {file.path}: {storage.stand_in('a Parquet file', raw.read(storage.FIRST_BYTES)) or damaged}")


def named_error(file: InputFile, error: OSError) -> Exception:
    """An error of the system with the file's name and in one line, and for what a person can mend a ValueError with the remedy."""
    if isinstance(error, FileNotFoundError):
        return ValueError(f"--input-files {file.path}: is gone since the files were listed; put it back or leave it out")
    if isinstance(error, storage.StorageError):
        return error
    if isinstance(error, PermissionError):
        return ValueError(f"--input-files {file.path}: may not be read by this user; allow it (chmod +r) or leave it out")
    return OSError(f"--input-files {file.path}: can't be read: {error.strerror or error}")
