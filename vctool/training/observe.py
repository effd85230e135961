"""What a run says about its loss: a first look, the numbers of a step, and words when it does not move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from vctool.models.interaction import BranchScores
from vctool.models.losses import RetrievalLoss
from vctool.training.batches import Batch
from vctool.training.diagnosis import BranchReport, explain_stall, report_branch, start_lines
from vctool.training.recipe import OptimConfig


class StepNumbers(NamedTuple):
    """One optimizer step: losses (means over its batches; NaN for a part there is not) and the gradient's norm before clipping."""

    loss: float
    frame: float
    video: float
    reversal: float
    gradient: float


def branch_reports(scores: BranchScores, batch: Batch, loss: RetrievalLoss) -> list[BranchReport]:
    """Both branches as the loss sees them now; with a combined loss the one total."""
    weights = loss.config.frame_weight, loss.config.video_weight
    parts = [("f", scores.frame_BC, 0, weights[0]), ("v", scores.video_BC, -1, weights[1])]
    if "combined" in loss.config.kind:
        parts = [("fv", scores.total_BC, 0, 1.0)]
    return [
        report_branch(name, score.detach().cpu().numpy(), batch.positive_BB, float(loss.log_scale[which]), float(loss.bias[which]), weight)
        for name, score, which, weight in parts
        if score is not None
    ]


@torch.no_grad()
def first_look(scores: BranchScores, batch: Batch, loss: RetrievalLoss) -> tuple[list[str], dict[str, float]]:
    """Lines and numbers about the first batch; sets the bias from it where the recipe says so."""
    sigmoid = "sigmoid" in loss.config.kind
    lines = []
    if sigmoid and loss.config.calibrate_bias:
        loss.calibrate(scores)
        lines.append(f"bias calibrated to {', '.join(f'{b:.2f}' for b in loss.bias.tolist())}")
    reports = branch_reports(scores, batch, loss)
    numbers = {f"{r.branch}/{name}": value for r in reports for name, value in vars(r).items() if isinstance(value, float)}
    return lines + start_lines(reports, sigmoid), numbers


def step_values(numbers: StepNumbers, loss: RetrievalLoss, rates: Sequence[float], speed: float, epoch: float) -> dict[str, float]:
    """A step in the log. rates: learning rates of the groups, new modules first. speed: rows a second."""
    values: dict[str, float] = {
        "epoch": epoch,
        "loss": numbers.loss,
        "loss_f": numbers.frame,
        "loss_v": numbers.video,
        "lr": rates[0],
        "grad_norm": numbers.gradient,
        "examples_per_second": speed,
    }
    if not math.isnan(numbers.reversal):
        values["loss_reversal"] = numbers.reversal
    if rates[-1] != rates[0]:
        values["backbone_lr"] = rates[-1]
    for name, parameter in (("log_scale", loss.log_scale), ("bias", loss.bias)):
        own: list[Any] = parameter.detach().tolist()
        values |= dict(zip((name,) if len(own) == 1 else (f"{name}_f", f"{name}_v"), own, strict=True))
    return values


@torch.no_grad()
def stall_reasons(
    scores: BranchScores, batch: Batch, loss: RetrievalLoss, optim: OptimConfig, numbers: StepNumbers, warming_up: bool
) -> list[str]:
    """Why the loss may not move, judged by a batch's scores now."""
    rows = len(batch.positive_BB)
    return explain_stall(
        branch_reports(scores, batch, loss),
        sigmoid="sigmoid" in loss.config.kind,
        peak_lr=optim.lr,
        gradient_norm=numbers.gradient,
        clip_norm=optim.clip_norm,
        shared_captions=float(batch.positive_BB.sum() - rows) / max(rows * rows - rows, 1),
        warming_up=warming_up,
    )
