"""AdamW in OpenLM's two parameter groups, and the gradient's global norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from open_lm.params import OptimizerParams


def make_optimizer(model: nn.Module, params: OptimizerParams) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with two groups: without and with weight decay; --wd-on all leaves the first one empty."""
    decays = {True: [], False: []}  # type: dict[bool, list[nn.Parameter]]
    for parameter in model.parameters():
        decays[params.wd_on == "all" or parameter.ndim >= 2].append(parameter)
    groups = [{"params": decays[False], "weight_decay": 0.0}, {"params": decays[True], "weight_decay": params.wd}]
    optimizer = torch.optim.AdamW(groups, lr=params.lr, betas=(params.beta1, params.beta2), eps=params.eps, fused=True)
    for parameter in model.parameters():  # made now, so that a checkpoint has somewhere to go
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of every group for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradient(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients to at most `max_norm` by their global norm over all parameters and all processes.

    Returns:
        The norm before clipping: fp32 scalar on the device, without a synchronisation.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm)
    return norm


def update_unless(optimizer: torch.optim.AdamW, bad: Tensor) -> None:
    """One optimizer step, or none where `bad` (bool scalar on the device) is true; decided on the device."""
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # the fused kernel reads it, as it does for a loss scaler
    optimizer.step()
