"""The `.metadata` of a run state: which tensors it has and in which file, at which byte, each piece of them lies.

torch.distributed.checkpoint keeps it as a pickle. One from outside may name any function; this reader builds the classes that describe
tensors and refuses everything else, entries of bytes (which loading would unpickle) included.
"""

from __future__ import annotations

import io
import pickle
from pathlib import PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from open_lm import storage

METADATA_FILE = ".metadata"

_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties"),
        *("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "Path", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "Path", "PurePosixPath"},
}


class _MetadataUnpickler(pickle.Unpickler):
    """Builds the classes of a .metadata of tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which has no place there")


def metadata_from(data: bytes, source: str) -> Metadata:
    """The content of a .metadata, which may come from anywhere.

    Args:
        source: the file, for messages.

    Raises:
        ValueError: damaged, anything but tensors inside, or pointing outside its folder.
    """
    try:
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
        outside = [i.relative_path for i in metadata.storage_data.values() if PurePosixPath(i.relative_path).name != i.relative_path]
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError) as error:
        other = None if data.startswith(b"\x80") else storage.instead_of("the description of a run state", data[: storage.FIRST_BYTES])
        raise ValueError(f"checkpoint {source}: {other or f'is not read: {error}'}") from None
    if outside or not isinstance(metadata, Metadata):
        what = f"it points outside its folder ({outside[0]})" if outside else "it describes no tensors"
        raise ValueError(f"checkpoint {source}: is not read: {what}")
    return metadata
