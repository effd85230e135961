"""Why a loss does not move, in words, from numbers: the scores of a batch, the scale and bias, the losses of many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SATURATED = 8.0  # a pair whose logit is this far on one side: sigmoid within 0.0004 of its end
_MANY_STUCK = 0.2  # share of pairs
_NOTHING_LEFT = 0.995  # share of pairs
_DEAD_SPREAD = 1e-3  # of cosines
_NO_LEAD = 0.1  # of the deviation
_LOPSIDED = 20.0  # times
_CUT_HARD = 20.0  # times


@dataclass(frozen=True)
class BranchReport:
    """One branch's scores on a batch of B captions against B clips, and what the loss makes of them.

    positive, negative: mean score of right and wrong pairs. spread: standard deviation of all scores. apart: of a
    caption's scores over the clips, mean over captions. positive_logit,
    negative_logit: mean of exp(t) * score + b. settled: share of pairs so far on the right side that they no longer
    teach. stuck: share so far on the wrong side that the slope is flat at its end. gradient: norm of the loss's
    derivative with respect to the scores, times the branch's weight. calibrated: the bias at which the mean pair is as unlikely as 1 in B.
    """

    branch: str
    positive: float
    negative: float
    spread: float
    apart: float
    positive_logit: float
    negative_logit: float
    settled: float
    stuck: float
    gradient: float
    calibrated: float
    bias: float


def report_branch(
    branch: str, score_BC: NDArray[np.float32], positive_BC: NDArray[np.bool_], log_scale: float, bias: float, weight: float = 1.0
) -> BranchReport:
    """Measure one branch, whose loss counts `weight` times. Clips that score -inf (no frame) are left out."""
    known = np.isfinite(score_BC)
    score = score_BC[known].astype(np.float64)
    right = positive_BC[known]
    z = np.where(right, 1.0, -1.0)
    scale = math.exp(log_scale)
    logit = scale * score + bias
    margin = z * logit
    pull = weight * scale / (1 + np.exp(np.clip(margin, -500, 500)))
    return BranchReport(
        branch=branch,
        positive=_mean(score[right]),
        negative=_mean(score[~right]),
        spread=float(score.std()),
        apart=float(np.mean([row[own].std() for row, own in zip(score_BC.astype(np.float64), known, strict=True) if own.any()])),
        positive_logit=_mean(logit[right]),
        negative_logit=_mean(logit[~right]),
        settled=float((margin > SATURATED).mean()),
        stuck=float((margin < -SATURATED).mean()),
        gradient=float(np.linalg.norm(pull)) / len(score_BC),
        calibrated=-scale * float(score.mean()) - math.log(max(score_BC.shape[1] - 1, 1)),
        bias=bias,
    )


def start_lines(reports: Sequence[BranchReport], sigmoid: bool) -> list[str]:
    """What the first batch looks like, a line for each branch, and a warning where the bias starts far off."""
    lines = []
    for r in reports:
        line = f"branch {r.branch}: right pairs score {r.positive:.3f}, wrong ones {r.negative:.3f}"
        if sigmoid:
            line += f"; logits {r.positive_logit:.1f} and {r.negative_logit:.1f}; {100 * r.stuck:.0f} % of pairs start on the wrong side"
        lines.append(line)
    worst = _worst_bias(reports)
    if sigmoid and worst is not None:
        where = f"the bias {worst.bias:.1f} is far from these scores (calibrated: {worst.calibrated:.1f})"
        lines.append(f"{where}; loss.calibrate_bias = true starts there")
    return lines


def stalled(losses: Sequence[float], window: int) -> bool:
    """Whether the mean of the last `window` losses is no lower than 99.5 % of that of the `window` before."""
    if window < 1 or len(losses) < 2 * window:
        return False
    recent = list(losses)[-2 * window :]  # a deque cannot be sliced
    before, now = np.mean(recent[:window]), np.mean(recent[window:])
    return bool(now >= before - 0.005 * abs(before))


def explain_stall(
    reports: Sequence[BranchReport],
    *,
    sigmoid: bool,
    peak_lr: float,
    gradient_norm: float,
    clip_norm: float,
    shared_captions: float,
    warming_up: bool = False,
) -> list[str]:
    """Likely reasons, the likeliest first; never empty.

    peak_lr: of the new modules. gradient_norm: before clipping. shared_captions: share of a batch's wrong pairs that are
    right because the caption is another clip's too (0..1).
    """
    reasons = []
    if warming_up:
        reasons.append("the learning rate is still rising: wait until the warm-up is over")
    if sigmoid:
        reasons += _about_bias(reports)
    reasons += _about_branches(reports)
    if shared_captions > 0.05:
        share = f"{100 * shared_captions:.0f} % of a batch's other clips have the same caption"
        reasons.append(f"{share}: more distinct captions, or smaller batches")
    if gradient_norm > _CUT_HARD * clip_norm:
        reasons.append(f"gradients of norm {gradient_norm:.3g} are cut to {clip_norm:g}: raise optim.clip_norm or calibrate the bias")
    if peak_lr < 3e-5:
        reasons.append(f"optim.lr = {peak_lr:g} is small for modules that start from nothing: 1e-4 to 1e-3 is usual")
    return reasons or ["nothing stands out: the run may be done, or optim.lr may be too high; watch the validation metrics"]


def branch_warnings(reports: Sequence[BranchReport], said: set[str]) -> list[str]:
    """What is wrong between the branches while the loss goes on falling, because one of them learns alone. Each is said once.

    said: what was said before; it grows.
    """
    lines = []
    for r in reports:
        if r.apart < _DEAD_SPREAD and r.branch not in said:
            said.add(r.branch)
            lines.append(
                f"branch {r.branch} is dead: it scores all clips alike (deviation {r.apart:.1e}) and the other one learns alone; lower "
                "optim.lr, or leave it out with model.interaction"
            )
    lopsided = _lopsided(reports)
    if lopsided is not None and not lines and "balance" not in said:
        said.add("balance")
        lines.append(lopsided)
    return lines


def _lopsided(reports: Sequence[BranchReport]) -> str | None:
    if len(reports) != 2:
        return None
    weak, strong = sorted(reports, key=lambda r: r.gradient)
    if strong.gradient <= _LOPSIDED * weak.gradient:
        return None
    times = f"branch {strong.branch} pulls {strong.gradient / max(weak.gradient, 1e-12):.0f} times harder than branch {weak.branch}"
    return f'{times}: try loss.kind = "dual_sigmoid_equalized" or loss.separate_scale = true'


def _about_bias(reports: Sequence[BranchReport]) -> list[str]:
    worst = _worst_bias(reports)
    if worst is not None:
        share = f"{100 * worst.stuck:.0f} % of the pairs of branch {worst.branch} lie far on the wrong side"
        way = f"the bias {worst.bias:.1f} has to travel to about {worst.calibrated:.1f} first"
        return [f"{share}: {way}; set loss.calibrate_bias = true"]
    if reports and all(r.settled > _NOTHING_LEFT for r in reports):
        return ["nearly all pairs are settled, nothing is left to learn from these negatives: larger batches, or groups of alike clips"]
    return []


def _about_branches(reports: Sequence[BranchReport]) -> list[str]:
    reasons = []
    for r in reports:
        if r.apart < _DEAD_SPREAD:
            reasons.append(f"branch {r.branch} scores all clips alike (deviation {r.apart:.1e}), its tokens collapsed: lower optim.lr")
        elif r.positive - r.negative < _NO_LEAD * r.spread:
            reasons.append(f"branch {r.branch} does not tell right pairs from wrong ones: check that the captions belong to their clips")
    lopsided = _lopsided(reports)
    if lopsided is not None:
        reasons.append(lopsided)
    return reasons


def _worst_bias(reports: Sequence[BranchReport]) -> BranchReport | None:
    """The branch with most pairs stuck on the wrong side, if they are many: one positive in B does not count."""
    far = [r for r in reports if r.stuck > _MANY_STUCK]
    return max(far, key=lambda r: r.stuck) if far else None


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
