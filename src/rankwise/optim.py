"""Optimizer and learning-rate schedule, from torch; biases and norms are never decayed."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

Schedule = Literal["linear", "cosine", "constant"]


def build_optimizer(
    model: nn.Module, kind: Literal["adamw", "adam"], lr: float, weight_decay: float
) -> Optimizer:
    """AdamW (decoupled decay, Loshchilov & Hutter 2019) or Adam over everything trainable, with matrices decayed and vectors not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    make = {"adamw": AdamW, "adam": Adam}[kind]
    return make([g for g in groups if g["params"]], lr=lr, fused=True)


def schedule_factor(schedule: Schedule, steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate of step i (from 0) as a share of its peak: a linear rise, then linear or cosine decay to zero.

    Args:
        schedule: linear, cosine or constant.
        steps: optimizer steps of the whole run.
        warmup: share of the steps spent rising.
    """
    rise = math.ceil(steps * warmup)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        if schedule == "linear":
            return 1.0 - done
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    return factor


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scales the gradient down to the norm `largest` (0: leaves it) and returns the norm it had."""
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if largest > 0:
        nn.utils.clip_grads_with_norm_(trained, largest, norm)
    return float(norm)
