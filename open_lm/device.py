"""The device a command runs its model on."""

from __future__ import annotations


def choose_device(named: str | None) -> str:
    """The named device, else cuda where there is one, else cpu.

    Raises:
        ValueError: a device that isn't there.
    """
    import torch

    if named is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA says so by an AssertionError
        raise ValueError(f"--device {named}: {str(error).splitlines()[0]}; give cpu, or cuda on a machine with a GPU") from None
    return named
