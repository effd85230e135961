"""The five losses: golden values, float64 oracles, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")

import torch.nn.functional as F  # noqa: E402

from vctool.models.interaction import BranchScores, mean_max_sim  # noqa: E402
from vctool.models.losses import LossConfig, LossKind, RetrievalLoss, infonce_loss, reversal_loss, sigmoid_loss  # noqa: E402

KINDS: list[LossKind] = ["dual_sigmoid", "dual_sigmoid_equalized", "combined_sigmoid", "dual_infonce", "combined_infonce"]

# The worked example of the method note: two queries of three tokens, two clips of two frames and three video tokens.
QUERY = F.normalize(torch.tensor([[[1.0, 0], [1, 1], [0, 1]], [[1, -1], [2, 1], [-1, 0]]]), dim=-1)
FRAME = F.normalize(torch.tensor([[[1.0, 0], [3, 4]], [[0, 1], [-1, 0]]]), dim=-1)
VIDEO = F.normalize(torch.tensor([[[1.0, 2], [2, 1], [0, 1]], [[-1, 1], [1, -1], [-1, -1]]]), dim=-1)
ALL_Q, ALL_F, ALL_V = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
EYE = torch.eye(2, dtype=torch.bool)


def golden_scores() -> BranchScores:
    return BranchScores(mean_max_sim(QUERY, ALL_Q, FRAME, ALL_F), mean_max_sim(QUERY, ALL_Q, VIDEO, ALL_V))


def test_golden_scores_of_both_branches() -> None:
    scores = golden_scores()
    np.testing.assert_allclose(scores.frame_BC, [[0.929983, 0.569036], [0.333845, 0.246702]], atol=1e-6)
    np.testing.assert_allclose(scores.video_BC, [[0.947703, 0.471405], [0.438743, 0.674445]], atol=1e-6)


def test_golden_scores_under_masks() -> None:
    query_mask, frame_mask = ALL_Q.clone(), ALL_F.clone()
    query_mask[0, 2], frame_mask[1, 1] = False, False
    score = mean_max_sim(QUERY, query_mask, FRAME, frame_mask)
    np.testing.assert_allclose(score, [[0.994975, 0.353553], [0.333845, -0.086631]], atol=1e-6)


@pytest.mark.parametrize(
    ("log_scale", "bias", "frame", "video", "total"),
    [(math.log(10), -10.0, 4.325719, 2.145257, 6.470976), (4.77, -12.93, 40.303477, 40.731929, 81.035406)],
)
def test_golden_losses(log_scale: float, bias: float, frame: float, video: float, total: float) -> None:
    out = RetrievalLoss(LossConfig(log_scale=log_scale, bias=bias))(golden_scores(), EYE)
    assert [float(x.detach()) for x in (out.frame, out.video, out.total)] == pytest.approx([frame, video, total], rel=2e-6)


def sigmoid_oracle(score: np.ndarray, positive: np.ndarray, t: float, b: float) -> float:
    total = 0.0
    for i, j in np.ndindex(score.shape):
        z = 1 if positive[i, j] else -1
        total -= math.log(1 / (1 + math.exp(-z * (math.exp(t) * score[i, j] + b))))
    return total / len(score)


def infonce_oracle(score: np.ndarray, positive: np.ndarray, t: float) -> float:
    share = np.exp(math.exp(t) * score)
    rows = -np.log((share * positive).sum(1) / share.sum(1)).mean()
    columns = -np.log((share * positive).sum(0) / share.sum(0)).mean()
    return float(rows + columns) / 2


@pytest.fixture
def scores() -> BranchScores:
    torch.manual_seed(0)
    return BranchScores(torch.rand(6, 6, dtype=torch.float64) * 0.8 - 0.2, torch.rand(6, 6, dtype=torch.float64) * 0.8 - 0.2)


@pytest.fixture
def positive() -> torch.Tensor:
    positive = torch.eye(6, dtype=torch.bool)
    positive[0, 3] = positive[3, 0] = True  # two clips that share a caption
    return positive


def test_each_loss_is_its_oracle(scores: BranchScores, positive: torch.Tensor) -> None:
    t, b, f, v, p = 2.0, -3.0, scores.frame_BC.numpy(), scores.video_BC.numpy(), positive.numpy()
    weights = {"frame_weight": 0.7, "video_weight": 1.3}
    wanted = {
        "dual_sigmoid": 0.7 * sigmoid_oracle(f, p, t, b) + 1.3 * sigmoid_oracle(v, p, t, b),
        "combined_sigmoid": sigmoid_oracle(f + v, p, t, b),
        "dual_infonce": 0.7 * infonce_oracle(f, p, t) + 1.3 * infonce_oracle(v, p, t),
        "combined_infonce": infonce_oracle(f + v, p, t),
    }
    for kind, value in wanted.items():
        loss = RetrievalLoss(LossConfig(kind=kind, log_scale=t, bias=b, **weights)).double()  # type: ignore[arg-type]
        assert float(loss(scores, positive).total.detach()) == pytest.approx(value, rel=1e-9), kind


def test_the_loss_is_divided_by_the_batch_not_by_its_square(scores: BranchScores) -> None:
    score, positive = scores.frame_BC, torch.eye(6, dtype=torch.bool)
    t, b = torch.tensor(2.0).double(), torch.tensor(-3.0).double()
    twice = sigmoid_loss(torch.cat([score, score]), torch.cat([positive, positive]), t, b)
    torch.testing.assert_close(twice, sigmoid_loss(score, positive, t, b))


def test_a_shared_caption_is_a_positive_not_a_negative(scores: BranchScores, positive: torch.Tensor) -> None:
    score = scores.frame_BC.clone().requires_grad_()
    sigmoid_loss(score, positive, torch.tensor(2.0), torch.tensor(-3.0)).backward()
    assert score.grad is not None and bool((score.grad[positive] < 0).all()) and bool((score.grad[~positive] > 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(scores: BranchScores, positive: torch.Tensor, kind: LossKind) -> None:
    if kind == "dual_sigmoid_equalized":
        pytest.skip("its factors are constants of the step on purpose: see the test of its norms")
    loss = RetrievalLoss(LossConfig(kind=kind, log_scale=1.0, bias=-1.0)).double()

    def total(f: torch.Tensor, v: torch.Tensor, t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, {"log_scale": t, "bias": b}, (BranchScores(f, v), positive)).total

    inputs = [x.clone().requires_grad_() for x in (scores.frame_BC, scores.video_BC, loss.log_scale.detach(), loss.bias.detach())]
    if "infonce" in kind:
        inputs[3].requires_grad_(False)
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("separate", [False, True])
def test_equalized_branches_pull_with_equal_norms_that_keep_their_mean(
    scores: BranchScores, positive: torch.Tensor, separate: bool
) -> None:
    uneven = BranchScores(scores.frame_BC * 0.1, scores.video_BC * 3)

    def norms(kind: LossKind) -> list[float]:
        loss = RetrievalLoss(LossConfig(kind=kind, log_scale=2.0, bias=-3.0, separate_scale=separate)).double()
        f, v = uneven.frame_BC.clone().requires_grad_(), uneven.video_BC.clone().requires_grad_()
        loss(BranchScores(f, v), positive).total.backward()
        return [float(f.grad.norm()), float(v.grad.norm())]

    plain, equal = norms("dual_sigmoid"), norms("dual_sigmoid_equalized")
    assert abs(plain[0] - plain[1]) > 0.1 * plain[0]
    assert equal[0] == pytest.approx(equal[1], rel=1e-6) == pytest.approx(sum(plain) / 2, rel=1e-6)


def test_separate_scales_move_by_their_own_branch_alone(scores: BranchScores, positive: torch.Tensor) -> None:
    loss = RetrievalLoss(LossConfig(log_scale=2.0, bias=-3.0, separate_scale=True, video_weight=0.0)).double()
    loss(scores, positive).total.backward()
    assert loss.bias.grad is not None and loss.bias.grad[0] != 0 and loss.bias.grad[1] == 0
    assert RetrievalLoss(LossConfig(separate_scale=True, kind="combined_sigmoid")).bias.shape == (1,)


@pytest.mark.parametrize("kind", KINDS)
def test_one_branch_is_trained_by_every_loss(scores: BranchScores, positive: torch.Tensor, kind: LossKind) -> None:
    loss = RetrievalLoss(LossConfig(kind=kind, log_scale=2.0, bias=-3.0)).double()
    out = loss(BranchScores(scores.frame_BC, None), positive)
    assert torch.isfinite(out.total) and math.isnan(float(out.video)) and float(out.frame) == pytest.approx(float(out.total.detach()))


def test_the_bias_trains_with_sigmoid_losses_only() -> None:
    assert RetrievalLoss(LossConfig(kind="dual_sigmoid")).bias.requires_grad
    assert not RetrievalLoss(LossConfig(kind="dual_infonce")).bias.requires_grad


@pytest.mark.parametrize(("kind", "separate"), [("dual_sigmoid", False), ("dual_sigmoid", True), ("combined_sigmoid", False)])
def test_calibration_makes_the_mean_pair_as_unlikely_as_its_share(scores: BranchScores, kind: LossKind, separate: bool) -> None:
    loss = RetrievalLoss(LossConfig(kind=kind, separate_scale=separate)).double()
    loss.calibrate(scores)
    f, v = scores.frame_BC.mean(), scores.video_BC.mean()
    means = [f + v] if kind == "combined_sigmoid" else [f, v] if separate else [(f + v) / 2]
    for i, mean in enumerate(means):
        assert float(torch.sigmoid(loss.log_scale[i].exp() * mean + loss.bias[i]).detach()) == pytest.approx(1 / 6, rel=1e-6)


def test_no_loss_overflows_at_its_extremes() -> None:
    far = BranchScores(torch.eye(4) * 2 - 1, 1 - torch.eye(4) * 2)
    for kind in KINDS:
        assert torch.isfinite(RetrievalLoss(LossConfig(kind=kind))(far, torch.eye(4, dtype=torch.bool)).total), kind


def test_infonce_of_equal_scores_is_the_logarithm_of_the_batch() -> None:
    loss = infonce_loss(torch.zeros(8, 8), torch.eye(8, dtype=torch.bool), torch.tensor(1.0))
    assert float(loss) == pytest.approx(math.log(8))


def test_the_reversal_loss_compares_a_caption_with_its_clip_played_both_ways() -> None:
    score = torch.tensor([[0.5, 0.3, 0.9], [0.1, 0.2, 0.9], [0.0, 0.0, 0.0]], dtype=torch.float64)
    reversal, scale = torch.tensor([1, 0, -1]), torch.tensor(2.0, dtype=torch.float64)
    wanted = np.mean([math.log(1 + math.exp(-math.exp(2.0) * margin)) for margin in (0.5 - 0.3, 0.2 - 0.1)])
    assert float(reversal_loss(score, reversal, scale)) == pytest.approx(wanted)
    assert float(reversal_loss(score, torch.full((3,), -1), scale)) == 0.0
    free = score.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: reversal_loss(s, reversal, scale), (free,))


def test_the_reversal_loss_teaches_the_video_branch_alone_and_is_off_by_default(scores: BranchScores) -> None:
    eye, reversal = torch.eye(6, dtype=torch.bool), torch.tensor([1, 0, 3, 2, -1, -1])
    plain = RetrievalLoss(LossConfig(log_scale=2.0, bias=-3.0)).double()
    weighted = RetrievalLoss(LossConfig(log_scale=2.0, bias=-3.0, reversal_weight=0.5)).double()
    assert torch.equal(plain(scores, eye, reversal).total, plain(scores, eye).total)
    without, out = plain(scores, eye), weighted(scores, eye, reversal)
    assert float((out.total - without.total).detach()) == pytest.approx(0.5 * float(out.reversal), rel=1e-6)
    frame, video = scores.frame_BC.clone().requires_grad_(), scores.video_BC.clone().requires_grad_()
    (weighted(BranchScores(frame, video), eye, reversal).total - plain(BranchScores(frame, video), eye).total).backward()
    assert frame.grad is not None and video.grad is not None and frame.grad.abs().max() < 1e-12 < video.grad.abs().max()
