"""The open_clip adapter against open_clip itself, on toy architectures of both of its model classes and on real ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")
open_clip = pytest.importorskip("open_clip", reason="open_clip is part of the extra `train`")

from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig  # noqa: E402
from vctool.errors import ModelError  # noqa: E402
from vctool.models.backbone import normalize_pixels  # noqa: E402
from vctool.models.checkpoint import build_model, load_model, save_model  # noqa: E402
from vctool.models.open_clip_backbone import OpenClipBackbone, preprocess_of  # noqa: E402
from vctool.preprocessing.tokenizer import Tokenizer  # noqa: E402

TOWER = {"width": 32, "layers": 2, "heads": 2}
TOYS: dict[str, dict[str, Any]] = {
    # open_clip's class CLIP keeps the text tower's parts on the model
    "toy-clip": {"embed_dim": 24, "quick_gelu": True, "text_cfg": {"context_length": 77, "vocab_size": 49408, **TOWER}},
    # CustomTextCLIP, as PE-Core is: causal, a tower of its own
    "toy-custom": {"embed_dim": 24, "custom_text": True, "text_cfg": {"context_length": 32, "vocab_size": 49408, **TOWER}},
    # as SigLIP is: bidirectional, a Linear projection with a bias, pooled at the last position
    "toy-siglip": {
        "embed_dim": 24,
        "custom_text": True,
        "init_logit_bias": -10,
        "text_cfg": {
            "context_length": 16, "vocab_size": 500, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", **TOWER,
            "hf_tokenizer_name": "toy/none", "tokenizer_kwargs": {"clean": "canonicalize"},
        },
    },
}  # fmt: skip
REAL = [
    "ViT-B-32-quickgelu",
    pytest.param("ViT-B-16-quickgelu", marks=pytest.mark.slow),
    pytest.param("ViT-B-16-SigLIP", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Toy architectures that open_clip lists like its own."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in TOYS.items():
        vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
        (folder / f"{name}.json").write_text(json.dumps({**config, "vision_cfg": vision}))
    open_clip.add_model_config(folder)
    yield
    for name in TOYS:
        open_clip.factory._MODEL_CONFIGS.pop(name, None)


def build(name: str) -> OpenClipBackbone:
    torch.manual_seed(0)
    return OpenClipBackbone(name).eval()


def some_texts(backbone: OpenClipBackbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with the highest one (as CLIP's EOT is) last, at three lengths, and the masks of true tokens."""
    length, vocabulary = backbone.context_length, backbone.text.vocab_size if hasattr(backbone.text, "vocab_size") else 500
    torch.manual_seed(1)
    ids, mask = torch.zeros(3, length, dtype=torch.int64), torch.zeros(3, length, dtype=torch.int64)
    for row, count in enumerate((3, length // 2, length)):
        ids[row, :count] = torch.randint(1, vocabulary - 1, (count,))
        ids[row, count - 1] = vocabulary - 1
        mask[row, :count] = 1
    return ids, mask


@pytest.mark.parametrize("name", [*TOYS, *REAL])
@torch.no_grad()
def test_features_are_open_clips_own_pooled_and_for_each_token(name: str) -> None:
    backbone = build(name)
    ids, mask = some_texts(backbone)
    states = backbone.text_states(ids, mask)
    torch.testing.assert_close(backbone.text_pooled(states, ids, mask), backbone.model.encode_text(ids), rtol=0, atol=1e-5)
    side = backbone.preprocess.size
    frames = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    features = backbone(frames)
    wanted = backbone.model.encode_image(normalize_pixels(frames, backbone.preprocess))
    torch.testing.assert_close(features, wanted, rtol=0, atol=1e-5)
    assert features.shape == (2, backbone.embed_dim)
    # Told not to pool, open_clip projects every token.
    setattr(backbone.text, "pool_type" if hasattr(backbone.text, "pool_type") else "text_pool_type", "none")
    tokens = backbone.text_head(states, ids, mask)
    torch.testing.assert_close(tokens, backbone.model.encode_text(ids), rtol=0, atol=1e-5)
    assert tokens.shape == (3, backbone.context_length, backbone.embed_dim)


@pytest.mark.parametrize("name", ["toy-clip", "toy-custom"])
@torch.no_grad()
def test_a_causal_tower_may_be_cut_and_its_words_never_see_the_pads(name: str) -> None:
    backbone = build(name)
    ids, mask = some_texts(backbone)
    ids, mask = ids[:2], mask[:2]
    whole = backbone.text_states(ids, mask)
    short = backbone.text_states(ids[:, :20], mask[:, :20])
    torch.testing.assert_close(short, whole[:, :20], rtol=0, atol=1e-5)
    other = torch.where(mask.bool(), ids, 7)  # other pads
    torch.testing.assert_close(backbone.text_states(other, mask)[mask.bool()], whole[mask.bool()], rtol=0, atol=1e-5)


def test_a_bidirectional_tower_is_always_padded_to_its_trained_length() -> None:
    backbone = build("toy-siglip")
    ids, mask = some_texts(backbone)
    assert not backbone.causal
    with pytest.raises(ModelError, match="takes exactly 16 tokens"):
        backbone.text_states(ids[:, :8], mask[:, :8])
    with pytest.raises(ModelError, match="must always see 16 tokens"):
        build_model(ModelConfig(embed_dim=24, backbone=BackboneConfig("open_clip", "toy-siglip"), query=QueryConfig(max_length=8)))


@torch.no_grad()
def test_the_pooled_position_comes_from_the_mask_not_from_the_ids() -> None:
    backbone = build("toy-clip")
    ids = torch.full((1, 77), 0)
    ids[0, :4] = torch.tensor([49406, 320, 0, 49407])  # "!" has CLIP's pad id
    mask = (torch.arange(77)[None] < 4).long()
    states = backbone.text_states(ids, mask)
    torch.testing.assert_close(backbone.text_pooled(states, ids, mask), backbone.model.encode_text(ids), rtol=0, atol=1e-5)


def test_the_start_of_the_loss_is_read_where_there_is_a_bias() -> None:
    start = build("toy-siglip").loss_start
    assert start is not None and start[1] == -10 and build("toy-clip").loss_start is None


def test_pixels_are_normalised_as_the_architecture_was_trained() -> None:
    names = {"ViT-B-16-SigLIP": (0.5, "squash"), "ViT-B-32-quickgelu": (0.48145466, "shortest"), "PE-Core-B-16": (0.5, "squash")}

    class Fake:  # the sizes do not matter here
        visual = type("V", (), {"image_size": 224})

    for name, (mean, resize) in names.items():
        config = preprocess_of(name, Fake)
        assert config.mean[0] == pytest.approx(mean) and config.resize == resize
    frame = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    config = preprocess_of("ViT-B-32-quickgelu", Fake)
    wanted = (np.array([0, 128, 255]) / 255 - config.mean) / config.std
    np.testing.assert_allclose(normalize_pixels(frame, config).flatten(), wanted, rtol=1e-5)


def config_of(name: str, length: int) -> ModelConfig:
    temporal = TemporalConfig(layers=1, head_width=8, max_frames=8)
    return ModelConfig(
        embed_dim=24, frames=4, backbone=BackboneConfig("open_clip", name), query=QueryConfig(max_length=length), temporal=temporal
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_local_checkpoint_file_gives_its_own_weights(tmp_path: Path, suffix: str) -> None:
    donor = build("toy-clip").model.state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": donor}, path)
    else:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in donor.items()}, path)
    torch.manual_seed(9)
    loaded = OpenClipBackbone("toy-clip", checkpoint=path).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in donor.items())


def test_a_checkpoint_of_another_architecture_or_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(build("toy-clip").model.state_dict(), path)
    with pytest.raises(ModelError, match="is a toy-clip, you asked for toy-siglip"):
        OpenClipBackbone("toy-siglip", checkpoint=path)
    with pytest.raises(ModelError, match="no such checkpoint file"):
        OpenClipBackbone("toy-clip", checkpoint=tmp_path / "none.pt")


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ModelError) as caught:
        OpenClipBackbone("ViT-B-32-quickgel")
    assert "ViT-B-32-quickgelu" in str(caught.value)


@pytest.mark.parametrize("name", ["toy-clip", "toy-custom"])
@torch.no_grad()
def test_a_model_directory_gives_back_the_same_scores(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    model = build_model(config_of(name, 16)).eval()
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    tokens = Tokenizer.load(tmp_path).encode(["a dog catching a frisbee", "hello!"])
    ids, mask = torch.from_numpy(tokens.input_ids_BL), torch.from_numpy(tokens.attention_mask_BL)
    assert ids.shape == (2, 16)
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    scores = [m.score(m.encode_query(ids, mask), m.encode_video(frames, present)) for m in (model, back)]
    assert torch.equal(scores[0].total_BC, scores[1].total_BC)
    assert not list(tmp_path.glob("*.pt")) and (tmp_path / "model.safetensors").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_model(build_model(config_of("toy-clip", 16)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"temporal": config["temporal"] | {"layers": 2}}))
    with pytest.raises(ModelError, match="does not fit"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ModelError):
        load_model(tmp_path)


def test_a_width_or_a_length_that_the_backbone_has_not_is_refused() -> None:
    with pytest.raises(ModelError, match="has width 24, the config says 512"):
        build_model(ModelConfig(backbone=BackboneConfig("open_clip", "toy-clip")))
    with pytest.raises(ModelError, match=r"query\.max_length is 100"):
        build_model(config_of("toy-clip", 100))
    with pytest.raises(ModelError, match=r"do not fit into temporal\.max_frames"):
        build_model(
            ModelConfig(embed_dim=24, frames=9, backbone=BackboneConfig("open_clip", "toy-clip"), temporal=TemporalConfig(max_frames=8))
        )


def test_siglip_takes_its_tokenizer_from_a_file_and_pads_with_its_end_token(tmp_path: Path) -> None:
    backbone = build("toy-siglip")
    with pytest.raises(ModelError, match="needs its own tokenizer file"):
        backbone.write_tokenizer(tmp_path)
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    made = Backend(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(tmp_path / "own.json"))
    backbone.tokenizer_file = tmp_path / "own.json"
    (tmp_path / "model").mkdir()
    backbone.write_tokenizer(tmp_path / "model", 16)
    tokens = Tokenizer.load(tmp_path / "model").encode(["A dog!"])
    assert tokens.input_ids_BL.tolist() == [[3, 4, 1, *[1] * 13]] and tokens.attention_mask_BL.sum() == 3


@pytest.mark.parametrize(
    ("words", "end", "said"),
    [
        (["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(900))], "</s>", "has 903 words, toy-siglip knows 500: it is another model's"),
        (["<s>", "a", "</s>", "<unk>", "dog"], "</s>", "does not end a text with the end token that toy-siglip was trained with"),
        ([], "", "is not a tokenizer"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(words: list[str], end: str, said: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    backbone = build("toy-siglip")
    backbone.tokenizer_file = tmp_path / "own.json"
    backbone.tokenizer_file.write_text("{}")
    if words:
        made = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, words.index(end))])
        made.save(str(tmp_path / "own.json"))
    with pytest.raises(ModelError, match=said):
        backbone.write_tokenizer(tmp_path)
