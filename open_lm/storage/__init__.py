"""Files on a local disk or behind a URL (s3://, https://, hf://, gs://, ...). The only package that knows fsspec.

    list_files, expand, expand_braces, stat, size, exists   what is there
    open_read, read_bytes                     reading; a remote file survives faults and goes on where it was
    upload, write_bytes, remove               writing, compared with what was sent; atomic_write for local files,
                                              tell_full_disk around others
    unwritable, contents, remove_files, finished_name   local folders: before writing; what is there, and removing some of it
    is_remote, local_path, join, parent       names
    file_kind, instead_of, stand_in             what a file is by its first bytes, for messages

Credentials and endpoints come from the usual variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, HF_TOKEN, ...). Errors: FileNotFoundError,
PermissionError and other OSErrors (`StorageError` for remote files) in one line; ValueError for a url that can't work. Patience:
`faults.ATTEMPTS` and `faults.FIRST_DELAY`, about a minute; overridden by OPENLM_STORAGE_ATTEMPTS, OPENLM_STORAGE_DELAY and
OPENLM_STORAGE_TIMEOUT (seconds).
"""

from __future__ import annotations

from open_lm.storage.faults import StorageError
from open_lm.storage.kind import FIRST_BYTES, file_kind, instead_of, is_json, stand_in
from open_lm.storage.listing import Stored, exists, expand, expand_braces, list_files, size, stat
from open_lm.storage.local import FullDiskError, atomic_write, contents, finished_name, remove_files, tell_full_disk, unwritable
from open_lm.storage.reader import open_read, read_bytes
from open_lm.storage.urls import is_remote, join, local_path, parent
from open_lm.storage.writing import remove, upload, write_bytes

__all__ = [
    "FIRST_BYTES",
    "FullDiskError",
    "StorageError",
    "Stored",
    "atomic_write",
    "contents",
    "exists",
    "expand",
    "expand_braces",
    "instead_of",
    "stand_in",
    "is_json",
    "finished_name",
    "is_remote",
    "join",
    "file_kind",
    "list_files",
    "local_path",
    "open_read",
    "parent",
    "read_bytes",
    "remove",
    "remove_files",
    "size",
    "stat",
    "tell_full_disk",
    "unwritable",
    "upload",
    "write_bytes",
]
