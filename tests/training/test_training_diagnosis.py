"""What is said about a loss that does not move."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest

from vctool.training.diagnosis import BranchReport, explain_stall, report_branch, stalled, start_lines

EYE = np.eye(8, dtype=np.bool_)
GOOD = {"sigmoid": True, "peak_lr": 1e-3, "gradient_norm": 1.0, "clip_norm": 1.0, "shared_captions": 0.0}


def scores(positive: float, negative: float, noise: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (np.where(EYE, positive, negative) + rng.normal(0, noise, EYE.shape)).astype(np.float32)


def report(
    positive: float, negative: float, *, log_scale: float = 4.77, bias: float = -12.93, noise: float = 0.02, branch: str = "f"
) -> BranchReport:
    return report_branch(branch, scores(positive, negative, noise), EYE, log_scale, bias)


def test_a_report_holds_means_logits_and_the_norm_of_the_gradient() -> None:
    score = scores(0.3, 0.1)
    found = report_branch("f", score, EYE, 2.0, -1.0)
    assert found.positive == pytest.approx(score[EYE].mean()) and found.negative == pytest.approx(score[~EYE].mean())
    assert found.positive_logit == pytest.approx(math.exp(2) * score[EYE].mean() - 1, abs=1e-5)
    z = np.where(EYE, 1, -1)
    loss = lambda s: -np.log(1 / (1 + np.exp(-z * (math.exp(2) * s - 1)))).sum() / 8  # noqa: E731
    step = 1e-5
    slope = np.zeros_like(score, dtype=np.float64)
    for i in np.ndindex(score.shape):
        bump = np.zeros_like(slope)
        bump[i] = step
        slope[i] = (loss(score + bump) - loss(score - bump)) / (2 * step)
    assert found.gradient == pytest.approx(np.linalg.norm(slope), rel=1e-4)


def test_cosines_of_clip_under_siglips_bias_are_seen_at_the_start() -> None:
    clip_like = report(0.3, 0.25)
    assert clip_like.stuck > 0.8
    said = " ".join(start_lines([clip_like], sigmoid=True))
    assert "calibrate_bias" in said and "on the wrong side" in said
    assert "calibrate_bias" not in " ".join(start_lines([report(0.1, 0.0)], sigmoid=True))


def test_the_calibrated_bias_makes_the_mean_pair_as_unlikely_as_its_share() -> None:
    found = report(0.3, 0.25)
    mean = scores(0.3, 0.25).mean(dtype=np.float64)
    assert 1 / (1 + math.exp(-(math.exp(4.77) * mean + found.calibrated))) == pytest.approx(1 / 8, rel=1e-3)


def test_a_clip_without_frames_does_not_spoil_the_report() -> None:
    score = scores(0.3, 0.1)
    score[:, 3] = -np.inf
    found = report_branch("f", score, EYE, 2.0, -1.0)
    assert all(math.isfinite(v) for v in vars(found).values() if isinstance(v, float))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reports": [report(0.3, 0.25)]}, "calibrate_bias"),
        ({"reports": [report(0.2, 0.2, noise=0.0), report(0.3, 0.0, branch="v")]}, "branch f scores all clips alike"),
        ({"reports": [report(0.05, 0.05)]}, "does not tell right pairs from wrong ones"),
        ({"reports": [report(0.9, -0.9)]}, "nearly all pairs are settled"),
        ({"reports": [report(0.3, 0.0), report(0.9, -0.9, branch="v")]}, "times harder than branch v"),
        ({"peak_lr": 1e-6}, "optim.lr = 1e-06 is small"),
        ({"shared_captions": 0.3}, "30 % of a batch's other clips have the same caption"),
        ({"gradient_norm": 500.0}, "are cut to 1"),
        ({"warming_up": True}, "still rising"),
        ({}, "nothing stands out"),
    ],
    ids=["bias", "dead branch", "chance", "settled", "lopsided", "small rate", "same captions", "clipping", "warm-up", "nothing"],
)
def test_a_stall_is_explained_in_words(change: dict[str, object], words: str) -> None:
    given = {"reports": [report(0.3, 0.1), report(0.3, 0.1, branch="v")], **GOOD, **change}
    reports = given.pop("reports")
    reasons = explain_stall(reports, **given)  # type: ignore[arg-type]
    assert any(words in reason for reason in reasons), reasons
    if not change:
        assert len(reasons) == 1


def test_a_falling_loss_is_not_a_stall_and_a_flat_one_is() -> None:
    assert not stalled([5.0 - 0.01 * i for i in range(100)], 50)
    assert stalled([5.0 + 0.001 * (i % 3) for i in range(100)], 50)
    assert stalled(deque([9.0, *(5.0 for _ in range(100))], maxlen=100), 50), "the loop keeps its losses in a deque"
    assert not stalled([5.0] * 99, 50) and not stalled([5.0] * 100, 0)
