"""Checkpoint averaging: sum of coefficient x weights over several checkpoints of one model (Wortsman et al. 2022, arXiv:2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from open_lm.checkpoint.load import carried_tokenizer, open_weights
from open_lm.checkpoint.unshard import mapped_tensors
from open_lm.checkpoint.weights import WeightsFile, first_names
from open_lm.params.fields import counted
from open_lm.progress import Progress
from open_lm.tokenizer import check_match


def coefficients_of(count: int, coefficients: Sequence[float]) -> list[float]:
    """The coefficients as given, or 1/count each. Raises ValueError for another number of them."""
    if coefficients and len(coefficients) != count:
        raise ValueError(f"--coefficients: {len(coefficients)} given for {counted(count, 'checkpoint')}; give one each, or none")
    return list(coefficients) or [1 / count] * count


def average_weights(
    checkpoints: Sequence[str], coefficients: Sequence[float] = (), folder: str | Path | None = None, allow_mismatch: bool = False
) -> WeightsFile:
    """The weighted sum, computed in fp64, one tensor at a time, in the type of the first checkpoint.

    Args:
        checkpoints: of one model; whatever `open_weights` takes.
        coefficients: one each; default 1/n. They are used as they are, also where their sum is not 1.
        folder: for the temporary file that holds the result; default the temporary folder.
        allow_mismatch: their tokenizers may differ.

    Returns:
        The weights; about them what the first checkpoint says, its `evaluation_metrics` left out, and `average`: names and coefficients.

    Raises:
        ValueError: a checkpoint that is not read, of another model or of another tokenizer; another number of coefficients.
    """
    factors = coefficients_of(len(checkpoints), coefficients)
    opened = [open_weights(one) for one in Progress("opening", len(checkpoints), "checkpoints").over(checkpoints)]
    files = [file for file, _ in opened]
    first = files[0].state_dict
    for checkpoint, file in zip(checkpoints, files):
        other = {name: value.shape for name, value in file.state_dict.items()}
        if other != {name: value.shape for name, value in first.items()}:
            raise ValueError(f"checkpoint {checkpoint}: is of another model than {checkpoints[0]}")
    holders = [(f"checkpoint {name}", carried_tokenizer(*one)) for name, one in zip(checkpoints, opened)]
    check_match(holders, allow_mismatch)
    pairs: dict[tuple[str, ...], str] = {}
    tied = [first_names(file.state_dict) for file in files]
    once = {name: pairs.setdefault(tuple(names[name] for names in tied), name) for name in first}  # tied in all of them
    result = mapped_tensors({name: (first[name].shape, first[name].dtype) for name in once.values()}, folder)
    for name, target in Progress("averaging", len(result), "tensors").over(result.items()):
        if name.endswith("inv_freq"):
            target.copy_(first[name])
            continue
        total = torch.zeros(target.shape, dtype=torch.float64)
        for factor, file in zip(factors, files):
            total.add_(file.state_dict[name].double(), alpha=factor)
        target.copy_(total)
    about = {**files[0].about, "evaluation_metrics": [], "average": [[name, factor] for name, factor in zip(checkpoints, factors)]}
    return WeightsFile({name: result[one] for name, one in once.items()}, about)
