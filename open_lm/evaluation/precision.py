"""The arithmetic of an evaluation: fp32, or bfloat16 where autocast allows it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "amp_bfloat16"]

FOUNDRY_NAMES: dict[str, Precision] = {"fp32": "fp32", "amp_fp32": "fp32", "amp_bf16": "amp_bfloat16", "amp_bfloat16": "amp_bfloat16"}
"""Names in LLM Foundry's YAML files, and ours."""


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """A context in which the model computes in `precision`."""
    import torch

    if precision == "amp_bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
