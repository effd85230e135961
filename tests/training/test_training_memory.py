"""Large batches on small memory: the same gradients with less held."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from test_training_run import weights
from torch import Tensor, nn
from toy import QUIET, Splits, batch_gradients, rows_of, toy_batch, toy_config, toy_model, toy_recipe

from vctool.config import TemporalConfig
from vctool.errors import UsageProblem
from vctool.models.interaction import mean_max_sim
from vctool.models.losses import LossConfig, RetrievalLoss
from vctool.models.temporal import Block
from vctool.training import checkpoint
from vctool.training.average import Average
from vctool.training.blocks import compile_blocks, recompute_blocks, repeated_blocks
from vctool.training.encoder import BatchInputs
from vctool.training.gradients import GradientPass
from vctool.training.precision import Precision
from vctool.training.ranks import ALONE
from vctool.training.recipe import load_recipe
from vctool.training.run import resume, start

FLOAT64 = Precision(torch.device("cpu"), "fp32", torch.float64)


def assert_equal_gradients(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.allclose(value, b[name], rtol=tolerance, atol=tolerance), name


def plain_gradients(rows: int, kind: str) -> dict[str, Tensor]:
    """The textbook step: encode everything, the whole [B, C, Q, T] tensor, one backward pass."""
    torch.manual_seed(5)
    model = toy_model(toy_config()).double()
    loss = RetrievalLoss(LossConfig(kind=kind, log_scale=2.3, bias=-2.0, separate_scale=True, reversal_weight=0.5)).double()  # type: ignore[arg-type]
    batch, part = toy_batch(rows)
    feature = model.backbone.frame_head(part.frames.double())[part.row_B]
    for row in torch.nonzero(part.reversed_B).flatten().tolist():
        count = int(part.frame_mask_UF[part.row_B[row]].sum())
        feature = torch.cat([feature[:row], torch.cat([feature[row, :count].flip(0), feature[row, count:]])[None], feature[row + 1 :]])
    mask = part.frame_mask_UF[part.row_B]
    clips = model.encode_features(feature, mask)
    assert part.text.state_BLW is not None
    query = model.query_from_states(part.text.state_BLW.double(), part.text.input_ids_BL, part.text.attention_mask_BL)

    def score(token_CTD: Tensor, mask_CT: Tensor) -> Tensor:
        similarity = torch.einsum("bqd,ctd->bcqt", query.query_BQD, token_CTD).masked_fill(~mask_CT[None, :, None], -torch.inf)
        best = similarity.max(dim=-1).values * query.query_mask_BQ[:, None]
        return best.sum(dim=-1) / query.query_mask_BQ.sum(dim=1)[:, None]

    from vctool.models.interaction import BranchScores

    scores = BranchScores(score(clips.frame_CFD, clips.frame_mask_CF), score(clips.video_CVD, clips.video_mask_CV))
    total = loss(scores, torch.from_numpy(batch.positive_BB), torch.from_numpy(batch.reversal_B)).total
    total.backward()
    named = [*model.named_parameters(), *((f"loss.{name}", p) for name, p in loss.named_parameters())]
    return {"total": total.detach()} | {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.parametrize("kind", ["dual_sigmoid", "dual_sigmoid_equalized", "combined_sigmoid", "dual_infonce", "combined_infonce"])
@pytest.mark.parametrize("encode_rows", [0, 1, 4])
def test_a_step_has_the_textbooks_gradient_in_float64_however_it_is_cut(kind: str, encode_rows: int) -> None:
    assert_equal_gradients(plain_gradients(9, kind), batch_gradients(ALONE, 9, kind=kind, encode_rows=encode_rows))


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_scores_in_chunks_and_their_gradients_are_those_of_the_whole_tensor_in_float64(chunk: int | None) -> None:
    draw = torch.Generator().manual_seed(1)
    query, token = (torch.nn.functional.normalize(torch.randn(7, n, 16, generator=draw, dtype=torch.float64), dim=-1) for n in (5, 6))
    query_mask, token_mask = torch.rand(7, 5, generator=draw) < 0.7, torch.rand(7, 6, generator=draw) < 0.7
    query_mask[:, 0] = token_mask[:, 0] = True
    found = []
    for whole in (True, False):
        q, t = query.clone().requires_grad_(), token.clone().requires_grad_()
        if whole:
            similarity = torch.einsum("bqd,ctd->bcqt", q, t).masked_fill(~token_mask[None, :, None], -torch.inf)
            score = (similarity.max(dim=-1).values * query_mask[:, None]).sum(-1) / query_mask.sum(1)[:, None]
        else:
            score = mean_max_sim(q, query_mask, t, token_mask, kernel="tiled", chunk=chunk)
        (score * torch.arange(49, dtype=torch.float64).view(7, 7)).sum().backward()
        found.append([score.detach(), q.grad, t.grad])
    for a, b in zip(*found, strict=True):
        assert a is not None and b is not None and torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_what_dropout_drew_is_drawn_again_in_the_second_pass() -> None:
    batch, whole = toy_batch(8)
    parts = [rows_of(whole, rows) for rows in torch.arange(8).split(3)]
    model = toy_model(toy_config()).double()
    model.backbone.frame_out = nn.Sequential(nn.Dropout(0.5), model.backbone.frame_out)  # type: ignore[assignment]
    drawn: list[Tensor] = []
    model.backbone.frame_out[0].register_forward_hook(lambda module, given, out: drawn.append(out.detach() == 0))  # type: ignore[index]
    passed = GradientPass(model, RetrievalLoss(LossConfig()).double(), FLOAT64, ALONE, pixels=False)
    passed(BatchInputs(batch, [8], 8, parts), 3, 0, scale=lambda total: total, check=lambda value: None)
    assert len(drawn) == 6 and all(torch.equal(a, b) for a, b in zip(drawn[:3], drawn[3:], strict=True))
    assert 0.2 < float(drawn[0].float().mean()) < 0.8 and not torch.equal(drawn[0], drawn[1])


class _Saved:
    """Counts the bytes that a forward pass keeps for the backward pass."""

    def __init__(self) -> None:
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor


def test_recomputed_blocks_keep_less_and_give_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        model = toy_model(toy_config(temporal=TemporalConfig(layers=4, head_width=8, max_frames=8))).double()
        assert not again or recompute_blocks(model) == 4
        saved = _Saved()
        feature, mask = torch.randn(6, 8, 16, dtype=torch.float64), torch.ones(6, 8, dtype=torch.bool)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            video = model.encode_features(feature, mask).video_CVD
        (video * torch.arange(16)).sum().backward()
        found.append((saved.bytes, {name: p.grad for name, p in model.temporal.named_parameters() if p.grad is not None}))
    assert found[1][0] < found[0][0] / 4
    assert_equal_gradients(found[0][1], found[1][1], 1e-12)


def test_blocks_are_found_by_standing_in_a_row() -> None:
    model = toy_model(toy_config(temporal=TemporalConfig(layers=3, head_width=8)))
    assert [type(block) for block in repeated_blocks(model)] == [Block] * 3  # and not the linear layers of a head


# -- the average of the weights ---------------------------------------------------------------------------------------


def test_the_average_follows_its_definition() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    average, expected = Average([weight], 0.5), 0.0
    for step, value in enumerate([1.0, 3.0, -2.0, 5.0, 4.0, 7.0, 1.0, 2.0, 3.0, 9.0]):
        weight.data.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.values[0]) == pytest.approx(expected, rel=1e-5)
    with average.in_place():
        assert float(weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(weight.detach()) == 9.0


@pytest.mark.usefixtures("toy")
def test_the_average_is_what_is_exported_and_goes_on_with_a_run(splits: Splits, tmp_path: Path) -> None:
    settings = {"optim__ema": 0.8, "run__best": "v/MRR", "run__validate_every": 9}
    start(toy_recipe(splits.train, splits.validation, tmp_path / "whole", **settings), display=QUIET)
    content = checkpoint.load_checkpoint(tmp_path / "whole" / "checkpoints")
    live = content["model"]
    exported = weights(tmp_path / "whole")
    names = [name for name, p in toy_model(toy_config()).named_parameters() if p.requires_grad]
    assert len(content["average"]) == len(names)
    for name, value in zip(names, content["average"], strict=True):
        assert torch.equal(exported[name], value) and not torch.equal(exported[name], live[name]), name
    assert resume(tmp_path / "whole", display=QUIET)["steps"] == 9
    assert all(torch.equal(value, exported[name]) for name, value in weights(tmp_path / "whole").items())


# -- recipes --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(("key", "value"), [("optim.ema", "1.0"), ("optim.encode_rows", "-1"), ("run.backend", "mpi")])
def test_values_out_of_range_are_refused(splits: Splits, tmp_path: Path, key: str, value: str) -> None:
    from vctool.training.recipe import recipe_toml

    (tmp_path / "r.toml").write_text(recipe_toml(toy_recipe(splits.train, splits.validation, tmp_path / "run")))
    with pytest.raises(UsageProblem, match=key.split(".")[1]):
        load_recipe(tmp_path / "r.toml", [f"{key}={value}"])


@pytest.mark.usefixtures("toy")
def test_a_run_from_before_a_key_existed_is_resumed(splits: Splits, tmp_path: Path) -> None:
    start(toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__steps=2), display=QUIET)
    (path,) = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    content = checkpoint.read_tensors(path)
    del content["recipe"]["optim"]["ema"]
    checkpoint.write_tensors(path, content)
    assert resume(tmp_path / "run", display=QUIET)["steps"] == 2


@pytest.mark.slow
def test_compiled_blocks_give_the_same_and_keep_their_names() -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = toy_model(toy_config(temporal=TemporalConfig(layers=3, head_width=8, max_frames=8)))
        names = list(model.state_dict())
        assert not compiled or compile_blocks(model) == 3
        video = model.encode_features(torch.randn(6, 8, 16), torch.ones(6, 8, dtype=torch.bool)).video_CVD
        (video * torch.arange(16)).sum().backward()
        assert list(model.state_dict()) == names
        found.append({name: p.grad for name, p in model.temporal.named_parameters() if p.grad is not None} | {"video": video.detach()})
    assert_equal_gradients(*found, tolerance=1e-5)
