"""Temporal encoders and the query policies: what counts, what is masked, what knows the order."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")

import torch.nn.functional as F  # noqa: E402

from vctool.config import QueryConfig, TemporalConfig  # noqa: E402
from vctool.models.temporal import MeanOfFrames, NoTemporalEncoder, TemporalTransformer, build_temporal_encoder  # noqa: E402
from vctool.models.video_colbert import counted_tokens  # noqa: E402

WIDTH, FRAMES = 16, 5


def transformer(**changes: object) -> TemporalTransformer:
    torch.manual_seed(0)
    config = TemporalConfig(**{"layers": 2, "head_width": 8, "max_frames": 12, **changes})  # type: ignore[arg-type]
    encoder = TemporalTransformer(WIDTH, config).eval()
    with torch.no_grad():  # positions and expansion tokens of a trained model are not tiny
        for parameter in (encoder.position, encoder.expansion):
            if parameter is not None:
                parameter.normal_()
    return encoder


@pytest.fixture
def feature() -> torch.Tensor:
    return torch.randn(3, FRAMES, WIDTH, generator=torch.Generator().manual_seed(1)) * 4


ALL = torch.ones(3, FRAMES, dtype=torch.bool)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_expansion_tokens_are_appended_and_always_valid(feature: torch.Tensor, count: int) -> None:
    mask = ALL.clone()
    mask[1, 3:] = False
    video, video_mask = transformer(expansion_tokens=count)(feature, mask)
    assert video.shape == (3, FRAMES + count, WIDTH) and video_mask.shape == (3, FRAMES + count)
    assert torch.equal(video_mask[:, :FRAMES], mask) and video_mask[:, FRAMES:].all()


def test_every_output_has_length_one(feature: torch.Tensor) -> None:
    for encoder in (transformer(), MeanOfFrames(), NoTemporalEncoder()):
        torch.testing.assert_close(encoder(feature, ALL)[0].norm(dim=-1), torch.ones(3, encoder(feature, ALL)[0].shape[1]))


@pytest.mark.parametrize("kind", ["transformer", "mean", "none"])
def test_padded_frames_change_nothing(feature: torch.Tensor, kind: str) -> None:
    encoder = transformer() if kind == "transformer" else build_temporal_encoder(WIDTH, TemporalConfig(kind=kind))  # type: ignore[arg-type]
    short, mask = encoder(feature[:, :3], ALL[:, :3])
    padded = torch.cat([feature[:, :3], torch.full((3, 2, WIDTH), 1e3)], dim=1)
    long, long_mask = encoder(padded, torch.arange(FRAMES).expand(3, -1) < 3)
    # Padding sits between the frames and the expansion tokens: compare what is valid.
    for c in range(3):
        torch.testing.assert_close(long[c][long_mask[c]], short[c][mask[c]], rtol=1e-5, atol=1e-5)


def test_with_positions_the_order_of_frames_matters(feature: torch.Tensor) -> None:
    encoder = transformer()
    forward, backward = encoder(feature, ALL)[0], encoder(feature.flip(1), ALL)[0]
    assert (forward[:, :FRAMES] - backward[:, :FRAMES].flip(1)).abs().max() > 1e-2


def test_without_positions_frames_may_come_in_any_order(feature: torch.Tensor) -> None:
    encoder = transformer(positions=False)
    order = torch.tensor([3, 0, 4, 1, 2])
    straight, shuffled = encoder(feature, ALL)[0], encoder(feature[:, order], ALL)[0]
    torch.testing.assert_close(shuffled[:, :FRAMES], straight[:, order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shuffled[:, FRAMES:], straight[:, FRAMES:], rtol=1e-5, atol=1e-5)


def test_the_residual_adds_the_frame_to_its_token_and_nothing_to_the_expansion(feature: torch.Tensor) -> None:
    with_residual, without = transformer(residual=True), transformer(residual=False)
    without.load_state_dict(with_residual.state_dict())
    captured: list[torch.Tensor] = []
    without.blocks[-1].register_forward_hook(lambda module, inputs, out: captured.append(out))
    bare = without(feature, ALL)[0]
    assert torch.equal(bare, F.normalize(captured[0], dim=-1))
    wanted = torch.cat([captured[0][:, :FRAMES] + feature, captured[0][:, FRAMES:]], dim=1)
    torch.testing.assert_close(with_residual(feature, ALL)[0], F.normalize(wanted, dim=-1))


def test_a_clip_without_any_frame_gives_numbers_all_the_same(feature: torch.Tensor) -> None:
    for count in (0, 2):
        video, mask = transformer(expansion_tokens=count)(feature, torch.zeros_like(ALL))
        assert torch.isfinite(video).all() and int(mask.sum()) == 3 * count
    assert torch.isfinite(MeanOfFrames()(feature, torch.zeros_like(ALL))[0]).all()


def test_a_clips_tokens_do_not_depend_on_its_batch(feature: torch.Tensor) -> None:
    encoder = transformer()
    torch.testing.assert_close(encoder(feature[1:2], ALL[1:2])[0][0], encoder(feature, ALL)[0][1], rtol=1e-5, atol=1e-6)


def test_the_mean_is_of_normalised_frames_and_has_no_time(feature: torch.Tensor) -> None:
    mask = ALL.clone()
    mask[0, 2:] = False
    video, video_mask = MeanOfFrames()(feature, mask)
    wanted = F.normalize(F.normalize(feature[0, :2], dim=-1).mean(0), dim=0)
    torch.testing.assert_close(video[0, 0], wanted)
    assert video.shape == (3, 1, WIDTH) and video_mask.all()


def test_every_parameter_of_the_transformer_gets_a_gradient(feature: torch.Tensor) -> None:
    encoder = transformer()
    video = encoder(feature, ALL)[0]
    (video * torch.randn_like(video)).sum().backward()
    still = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert encoder.position is not None and not encoder.position.grad[FRAMES:].any()


def counted(counted_: str, expand: str, lengths: tuple[int, ...] = (5, 3), auto_limit: int = 4) -> list[str]:
    config = QueryConfig(counted=counted_, expand=expand, auto_limit=auto_limit)  # type: ignore[arg-type]
    mask = (torch.arange(7)[None] < torch.tensor(lengths)[:, None]).long()
    return ["".join("x" if n else "." for n in row) for row in counted_tokens(config, mask).tolist()]


@pytest.mark.parametrize(
    ("which", "expand", "wanted"),
    [
        ("all", "off", ["xxxxx..", "xxx...."]),
        ("no_sot", "off", [".xxxx..", ".xx...."]),
        ("words", "off", [".xxx...", ".x....."]),
        ("all", "on", ["xxxxxxx", "xxxxxxx"]),
        ("no_sot", "on", [".xxxxxx", ".xxxxxx"]),
        ("words", "on", [".xxx.xx", ".x.xxxx"]),
        ("all", "auto", ["xxxxx..", "xxxxxxx"]),
        ("words", "auto", [".xxx...", ".x.xxxx"]),
    ],
)
def test_which_positions_count(which: str, expand: str, wanted: list[str]) -> None:
    assert counted(which, expand) == wanted


def test_automatic_expansion_counts_pads_up_to_its_limit_of_true_tokens() -> None:
    assert counted("all", "auto", (4, 5), auto_limit=4) == ["xxxxxxx", "xxxxx.."]
