"""The towers that come from PyPI: shapes, freezing, the roles of pads and of places in the picture."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")

from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig  # noqa: E402
from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM  # noqa: E402
from vctool.errors import ModelError  # noqa: E402
from vctool.models.checkpoint import build_model, load_model, save_model  # noqa: E402
from vctool.models.losses import LossConfig, RetrievalLoss  # noqa: E402
from vctool.models.offline_backbone import HeadsBackbone, build_offline_backbone  # noqa: E402
from vctool.models.video_colbert import VideoColBERT, count_parameters  # noqa: E402
from vctool.preprocessing.tokenizer import Tokenizer  # noqa: E402
from vctool.training.optimizer import build_optimizer, trained_parameters  # noqa: E402
from vctool.training.recipe import OptimConfig  # noqa: E402

try:
    EFFICIENTNET_LITE0.locate()
    MINILM.locate()
except ModelError as problem:
    pytest.skip(f"{problem}", allow_module_level=True)
pytest.importorskip("timm", reason="timm comes with open_clip (the extra `train`)")

WIDTH = 32


@pytest.fixture(scope="module")
def model() -> VideoColBERT:
    torch.manual_seed(0)
    temporal = TemporalConfig(layers=1, head_width=16, mlp_ratio=2.0, max_frames=8)
    query = QueryConfig(max_length=16)
    return build_model(
        ModelConfig(embed_dim=WIDTH, frames=4, backbone=BackboneConfig("offline", "heads"), query=query, temporal=temporal)
    ).eval()


@pytest.fixture(scope="module")
def tokens(model: VideoColBERT, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, torch.Tensor]:
    folder = tmp_path_factory.mktemp("tokenizer")
    model.backbone.write_tokenizer(folder, 16)
    batch = Tokenizer.load(folder).encode(["a dog", "a rocket flies from the left to the right"])
    return torch.from_numpy(batch.input_ids_BL), torch.from_numpy(batch.attention_mask_BL)


@pytest.fixture(scope="module")
def maps(model: VideoColBERT) -> torch.Tensor:
    frames = torch.randint(0, 256, (4, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return model.backbone.frame_map(frames)


def test_a_frame_becomes_sixteen_cells_and_then_one_feature(model: VideoColBERT, maps: torch.Tensor) -> None:
    assert maps.shape == (4, 16, 768) and not maps.requires_grad
    assert model.backbone.frame_head(maps).shape == (4, WIDTH)


def test_where_a_thing_is_reaches_the_frame_feature(model: VideoColBERT, maps: torch.Tensor) -> None:
    mirrored = maps.reshape(4, 4, 4, 768).flip(2).reshape(4, 16, 768)
    straight, turned = model.backbone.frame_head(maps), model.backbone.frame_head(mirrored)
    assert (straight - turned).abs().mean() > 1e-3 * straight.abs().mean()


@torch.no_grad()
def test_words_do_not_see_pads_and_a_pad_sees_no_later_pad(model: VideoColBERT, tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, mask = tokens
    whole = model.encode_query(ids, mask).query_BQD
    short = model.encode_query(ids[:, :14], mask[:, :14]).query_BQD
    torch.testing.assert_close(short, whole[:, :14], rtol=0, atol=1e-5)


@torch.no_grad()
def test_states_at_pads_are_not_read(model: VideoColBERT, tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids, mask = tokens
    states = model.backbone.text_states(ids, mask)
    other = torch.where(mask.bool()[..., None], states, torch.full_like(states, 50.0))
    assert not model.backbone.pad_states
    assert torch.equal(model.query_from_states(states, ids, mask).query_BQD, model.query_from_states(other, ids, mask).query_BQD)


@torch.no_grad()
def test_towers_stay_in_evaluation_mode(model: VideoColBERT) -> None:
    frames = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    before = model.backbone.frame_map(frames)
    model.train()
    assert torch.equal(before, model.backbone.frame_map(frames))
    model.eval()


def test_the_towers_are_neither_trained_nor_stored(model: VideoColBERT) -> None:
    assert not any(p.requires_grad for p in model.backbone.frozen_parameters())
    assert not [name for name in model.trainable_state() if "_tower" in name]
    sizes = count_parameters(model)
    assert sizes["frozen"] > 20e6 > sizes["trained"] > 0


@torch.no_grad()
def test_a_model_directory_gives_back_the_same_scores(
    model: VideoColBERT, tokens: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    save_model(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4e6
    back = load_model(tmp_path)
    frames = torch.randint(0, 256, (2, 4, 128, 128, 3), dtype=torch.uint8)
    present = torch.ones(2, 4, dtype=torch.bool)
    scores = [m.score(m.encode_query(*tokens), m.encode_video(frames, present)) for m in (model, back)]
    assert torch.equal(scores[0].total_BC, scores[1].total_BC)


def test_real_heads_learn_made_up_maps_in_a_few_steps(tokens: tuple[torch.Tensor, torch.Tensor], model: VideoColBERT) -> None:
    torch.manual_seed(0)
    fresh = copy.deepcopy(model).train()
    assert isinstance(fresh.backbone, HeadsBackbone)
    clips, frames = 6, 4
    made = torch.randn(clips, frames, 16, 768) * torch.rand(768) * 10
    fresh.backbone.set_map_statistics(made.flatten(0, 1))
    ids = torch.randint(1000, 5000, (clips, 16))
    mask = (torch.arange(16)[None] < 8).long().expand(clips, -1)
    states = fresh.backbone.text_states(ids, mask)
    loss = RetrievalLoss(LossConfig(log_scale=3.0, bias=-6.0))
    optimizer = build_optimizer(fresh, loss, OptimConfig(lr=2e-3, weight_decay=0.0))
    losses = []
    for _ in range(25):
        scores = fresh.score(
            fresh.query_from_states(states, ids, mask), fresh.encode_maps(made, torch.ones(clips, frames, dtype=torch.bool))
        )
        total = loss(scores, torch.eye(clips, dtype=torch.bool)).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.5 * losses[0]
    unmoved = [n for n, p in fresh.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # Rows of tables beyond the lengths in use have no gradient, but every table has some.
    assert not unmoved, unmoved
    assert len(trained_parameters(fresh)) == len([p for p in fresh.parameters() if p.requires_grad])


@torch.no_grad()
def test_statistics_standardise_every_channel(model: VideoColBERT) -> None:
    backbone = copy.deepcopy(model.backbone)
    assert isinstance(backbone, HeadsBackbone)
    sample = torch.randn(50, 16, 768) * torch.linspace(0.01, 100, 768) + 7
    backbone.set_map_statistics(sample)
    standard = (sample - backbone.map_mean) / backbone.map_std
    assert float(standard.mean().abs()) < 1e-4 and float((standard.flatten(0, 1).std(dim=0) - 1).abs().max()) < 1e-3


@torch.no_grad()
def test_conse_is_a_pooled_model_of_frames_alone() -> None:
    backbone, query, temporal = BackboneConfig("offline", "conse"), QueryConfig(policy="pooled"), TemporalConfig(kind="mean")
    config = ModelConfig(embed_dim=384, frames=2, interaction="f", backbone=backbone, query=query, temporal=temporal)
    model = build_model(config).eval()
    ids, mask = torch.tensor([[101, 3899, 102, 0]]), torch.tensor([[1, 1, 1, 0]])
    asked = model.encode_query(ids, mask)
    video = model.encode_video(torch.randint(0, 256, (1, 2, 224, 224, 3), dtype=torch.uint8), torch.ones(1, 2, dtype=torch.bool))
    scores = model.score(asked, video)
    assert asked.query_BQD.shape == (1, 1, 384) and scores.video_BC is None and -1 <= scores.total_BC.item() <= 1


def test_an_unknown_offline_backbone_and_a_wrong_width_are_one_line() -> None:
    with pytest.raises(ModelError, match="there is no offline backbone 'head'"):
        build_offline_backbone("head", 64)
    with pytest.raises(ModelError, match="has width 384, not 64"):
        build_offline_backbone("conse", 64)
