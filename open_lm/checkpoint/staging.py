"""A copy of tensors in the memory of the host, made while training is held up and read while it goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 64


class Staging:
    """One buffer for all tensors, made at the first copy and used again; in pinned memory where the tensors are on a GPU.

    Not made of PyTorch's pinned blocks: their sizes are powers of two, up to twice what is needed.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._pinned = False
        self._copied: torch.cuda.Event | None = None

    def copy(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copy tensors; the result holds their values when `wait` returns. Copies from a GPU are queued, the host goes on.

        Returns:
            Contiguous tensors of the same shapes and types on the host, each with a storage of its own bytes: valid until the next copy.
        """
        starts, total = [], 0
        for tensor in tensors:
            starts.append(total)
            total += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT
        device = next((t.device for t in tensors if t.is_cuda), None)
        if self._buffer is None or self._buffer.nbytes < total:
            self._make(total, pinned=device is not None)
        assert self._buffer is not None
        storage = self._buffer.untyped_storage()
        copies = []
        with torch.no_grad():
            for tensor, start in zip(tensors, starts, strict=True):
                piece = storage[start : start + tensor.nbytes]
                strides = torch.empty(tensor.shape, device="meta").stride()
                copy = torch.empty(0, dtype=tensor.dtype).set_(piece, 0, tensor.shape, strides)
                copies.append(copy.copy_(tensor.detach(), non_blocking=True))
        if device is not None:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(device))
        return copies

    def wait(self) -> None:
        """Until the last copy is made. May be called from another thread."""
        if self._copied is not None:
            self._copied.synchronize()

    def close(self) -> None:
        """Give the memory back. Copies must not be used any more."""
        if self._pinned and self._buffer is not None:
            torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())
        self._buffer, self._pinned = None, False

    def _make(self, size: int, pinned: bool) -> None:
        self.close()
        self._buffer = torch.empty(max(size, 1), dtype=torch.uint8)
        if pinned:
            self._pinned = int(torch.cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), self._buffer.nbytes, 0)) == 0
            if not self._pinned:
                logging.warning("run states: the host's memory can't be pinned; copies from the GPU hold training up longer")
