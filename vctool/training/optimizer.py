"""AdamW with two learning rates, warm-up and a cosine."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from vctool.errors import UsageProblem
from vctool.models.losses import RetrievalLoss
from vctool.models.video_colbert import VideoColBERT
from vctool.training.recipe import OptimConfig


def freeze_pretrained(model: VideoColBERT, freeze_backbone: bool) -> None:
    """Stop gradients of what stays as it is: the packaged towers, or with `freeze_backbone` a whole pretrained backbone.

    Where the towers are packaged, the rest of the backbone is new and trains whatever `freeze_backbone` says.
    """
    packaged = model.backbone.frozen_parameters()
    for parameter in packaged or (model.backbone.pretrained_parameters() if freeze_backbone else []):
        parameter.requires_grad_(False)


def build_optimizer(model: VideoColBERT, loss: RetrievalLoss, optim: OptimConfig) -> torch.optim.AdamW:
    """Groups by learning rate and by weight decay; `group["peak_lr"]` is what the schedule multiplies.

    Vectors and scalars (biases, norms, log-scale, bias) do not decay. Raises UsageProblem where nothing would train.
    """
    pretrained = [] if model.backbone.frozen_parameters() else [p for p in model.backbone.pretrained_parameters() if p.requires_grad]
    known = {id(p) for p in pretrained}
    new = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    if not pretrained and not new:
        raise UsageProblem("nothing to train: the backbone is frozen and there is no temporal transformer", "unfreeze one of them")
    groups: list[dict[str, Any]] = []
    for rate, parameters in ((optim.lr, [*new, *loss.parameters()]), (optim.backbone_lr, pretrained)):
        trained = [p for p in parameters if p.requires_grad]
        for decay, members in ((optim.weight_decay, [p for p in trained if p.ndim > 1]), (0.0, [p for p in trained if p.ndim < 2])):
            if members:
                groups.append({"params": members, "weight_decay": decay, "peak_lr": rate, "lr": rate})
    return torch.optim.AdamW(groups, betas=optim.betas)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the gradient norm is taken over (log-scale and bias are not in it: their gradients dwarf all others at the start)."""
    return [p for p in model.parameters() if p.requires_grad]


def rate_factor(step: int, total: int, optim: OptimConfig) -> float:
    """Share of the peak rate at `step` (from 0) of `total`: a straight rise, then a cosine to `final_lr`."""
    warm = round(optim.warmup * total)
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, total - warm)
    return optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
