"""AdamW (Loshchilov & Hutter 2019), the same one under every engine.

Weight decay is for matrices (two dimensions or more, the embedding among them); norms stay where they are. torch's own
implementation, the fused one: a single pass over weights and moments. It works element by element, yet rounds those at
the end of a piece otherwise than those before: cut in other pieces (other ranks, another stage) the same update agrees
to the last digit or two, not to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fmscale.config import OptimConfig


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """[matrices with decay, the rest without], each in the order given; an empty one is left out."""
    parameters = [p for _, p in named]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over parameters given with their canonical names. `set_learning_rate` before each step."""
    return torch.optim.AdamW(
        parameter_groups(named, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
