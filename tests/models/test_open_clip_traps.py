"""What goes silently wrong with open_clip's towers, each by its name; and every fetch name in miniature against open_clip itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")
open_clip = pytest.importorskip("open_clip", reason="open_clip is part of the extra `train`")

from tinytowers import FAMILIES, tiny_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from vctool.errors import ModelError  # noqa: E402
from vctool.models.backbone import normalize_pixels  # noqa: E402
from vctool.models.open_clip_backbone import OpenClipBackbone, preprocess_of  # noqa: E402
from vctool.zoo.table import MODELS, ZooModel  # noqa: E402

EXTRA: dict[str, dict[str, Any]] = {
    "tiny-gelu": {"quick_gelu": False},  # CLIP as LAION and DataComp trained it
    "tiny-unprojected": {"custom_text": True, "text_cfg": {"proj_type": "none"}},
}


@pytest.fixture(scope="module", autouse=True)
def extra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("configs")
    for name, change in EXTRA.items():
        config = open_clip.get_model_config("tiny-clip")
        text = config["text_cfg"] | change.get("text_cfg", {})
        (folder / f"{name}.json").write_text(json.dumps(config | change | {"text_cfg": text}))
    open_clip.add_model_config(folder)
    yield
    for name in EXTRA:
        open_clip.factory._MODEL_CONFIGS.pop(name, None)


def miniature(model: ZooModel) -> str:
    """The architecture in miniature that a name's tower is an instance of."""
    if model.name.startswith("siglip"):
        return "tiny-siglip"
    if model.name.startswith("pe-"):
        return "tiny-pe"
    if model.name.startswith("mobileclip2-s"):
        return "tiny-mobileclip"
    if model.name == "mobileclip2-b":
        return "tiny-mobileclip-b"
    return "tiny-clip" if model.architecture.endswith("-quickgelu") else "tiny-gelu"


def build(name: str) -> OpenClipBackbone:
    """With random weights, and batch norms that do something."""
    torch.manual_seed(0)
    backbone = OpenClipBackbone(name).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return backbone


def texts(backbone: OpenClipBackbone) -> tuple[Tensor, Tensor]:
    """Ids and masks of a short, a middling and a full text; the highest id, where open_clip looks for the end, is last."""
    length, top = backbone.context_length, backbone.text.token_embedding.weight.shape[0] - 1
    ids, mask = torch.zeros(3, length, dtype=torch.int64), torch.zeros(3, length, dtype=torch.int64)
    torch.manual_seed(1)
    for row, count in enumerate((3, length // 2, length)):
        ids[row, :count] = torch.randint(1, top, (count,))
        ids[row, count - 1], mask[row, :count] = top, 1
    return ids, mask


def projected(backbone: OpenClipBackbone, states: Tensor) -> Tensor:
    """The text projection in all its forms, written once more."""
    projection = backbone.text.text_projection
    if projection is None:
        return states
    return projection(states) if isinstance(projection, nn.Linear) else states @ projection


def test_every_fetch_name_has_a_miniature_of_its_family() -> None:
    assert {miniature(model) for model in MODELS} == {*FAMILIES, "tiny-gelu"}


@pytest.mark.parametrize("name", [*FAMILIES, *EXTRA])
@torch.no_grad()
def test_pooled_token_and_frame_features_of_every_fetch_names_family_are_open_clips(name: str) -> None:
    backbone = build(name)
    model, (ids, mask) = backbone.model, texts(backbone)
    states = backbone.text_states(ids, mask)
    torch.testing.assert_close(backbone.text_pooled(states, ids, mask), model.encode_text(ids), rtol=0, atol=1e-6)
    told = model.forward_intermediates(
        text=ids, text_indices=1, normalize_intermediates=True, intermediates_only=True, text_output_fmt="NLC"
    )
    torch.testing.assert_close(
        backbone.text_head(states, ids, mask), projected(backbone, told["text_intermediates"][-1]), rtol=0, atol=1e-6
    )
    side = backbone.preprocess.size
    frames = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    torch.testing.assert_close(backbone(frames), model.encode_image(normalize_pixels(frames, backbone.preprocess)), rtol=0, atol=1e-6)


def test_trap_1_both_model_classes_and_every_kind_of_projection() -> None:
    kinds = {name: (build(name).text is build(name).model, type(build(name).text.text_projection)) for name in ("tiny-clip", "tiny-pe")}
    assert {type(build(n).model).__name__ for n in ("tiny-clip", "tiny-pe")} == {"CLIP", "CustomTextCLIP"}
    assert kinds["tiny-clip"][1] is nn.Parameter and kinds["tiny-pe"][1] is nn.Parameter
    assert type(build("tiny-siglip").text.text_projection) is nn.Linear and build("tiny-unprojected").text.text_projection is None


@torch.no_grad()
def test_trap_2_a_shorter_text_gets_its_own_part_of_positions_and_mask() -> None:
    backbone = build("tiny-clip")
    ids, mask = texts(backbone)
    with pytest.raises(RuntimeError):  # open_clip adds the whole table of positions
        backbone.model.encode_text(ids[:2, :9])
    whole = backbone.text_states(ids[:2], mask[:2])
    torch.testing.assert_close(backbone.text_states(ids[:2, :9], mask[:2, :9]), whole[:, :9], rtol=0, atol=1e-6)
    for name in ("tiny-siglip", "tiny-mobileclip"):  # these read their pads: shorter would be another text
        with pytest.raises(ModelError, match="takes exactly 16 tokens"):
            build(name).text_states(ids[:2, :9], mask[:2, :9])


@torch.no_grad()
def test_trap_3_tokens_are_normalised_and_projected() -> None:
    backbone = build("tiny-pe")
    ids, mask = texts(backbone)
    tokens = backbone.text_head(backbone.text_states(ids, mask), ids, mask)
    backbone.text.output_tokens = True
    _, raw = backbone.text(ids)
    backbone.text.output_tokens = False
    assert raw.shape == tokens.shape and (raw - tokens).abs().max() > 0.1  # what open_clip gives is not in the joint space
    block = backbone.model.forward_intermediates(
        text=ids, text_indices=1, normalize_intermediates=False, intermediates_only=True, text_output_fmt="NLC"
    )["text_intermediates"][-1]
    assert (projected(backbone, block) - tokens).abs().max() > 0.1
    torch.testing.assert_close(projected(backbone, backbone.text.ln_final(block)), tokens, rtol=0, atol=1e-6)


@torch.no_grad()
def test_trap_4_siglip_pools_its_last_position_which_is_a_pad() -> None:
    backbone = build("tiny-siglip")
    ids, mask = texts(backbone)
    ids, mask = ids[:1], mask[:1]  # three true tokens of sixteen
    states = backbone.text_states(ids, mask)
    pooled = backbone.text_pooled(states, ids, mask)
    tokens = backbone.text_head(states, ids, mask)
    torch.testing.assert_close(pooled, backbone.model.encode_text(ids), rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled, tokens[:, -1], rtol=0, atol=1e-6)
    assert (pooled - tokens[:, 2]).abs().max() > 1e-3
    other = ids.clone()
    other[0, 3:] = 7
    assert (backbone.model.encode_text(other) - pooled).abs().max() > 1e-3  # the pad's id is part of the text


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_trap_5_pixels_are_prepared_as_the_weights_were_trained_and_not_as_open_clip_does_for_a_file(model: ZooModel) -> None:
    from open_clip.pretrained import get_pretrained_cfg

    recorded = get_pretrained_cfg(model.architecture, model.tag)
    fake = type("Fake", (), {"visual": type("Visual", (), {"image_size": model.size})})
    ours = preprocess_of(model.architecture, fake, model.tag)
    wanted = tuple(recorded[key] for key in ("mean", "std", "interpolation", "resize_mode"))
    assert (ours.mean, ours.std, ours.interpolation, ours.resize) == wanted
    family = "squash" if model.name.startswith(("siglip", "pe-")) or model.name == "dfn-h14" else "shortest"
    assert ours.resize == family and (ours.mean == (0, 0, 0)) == model.name.startswith("mobileclip")


def test_trap_5_a_local_file_gets_its_own_statistics(tmp_path: Path) -> None:
    torch.save(build("tiny-siglip").model.state_dict(), tmp_path / "w.pt")
    _, _, theirs = open_clip.create_model_and_transforms("tiny-siglip", pretrained=str(tmp_path / "w.pt"))
    assert theirs.transforms[-1].mean == open_clip.OPENAI_DATASET_MEAN  # whatever the architecture
    assert OpenClipBackbone("tiny-siglip", checkpoint=tmp_path / "w.pt").preprocess.mean == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_trap_6_mobileclip_is_folded_before_export_and_computes_the_same() -> None:
    from vctool_export.graphs import graph_specs

    model = tiny_model("tiny-mobileclip")
    spec = next(spec for spec in graph_specs(model) if spec.name == "frame")
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in module.modules()) for module in (model, spec.module)]
    assert norms[1] < norms[0] / 2
    frames = spec.inputs["frames"]
    torch.testing.assert_close(spec.module(frames), model.backbone(frames), rtol=0, atol=1e-5)


def test_trap_7_pe_takes_32_tokens_and_what_is_cut_is_told(tmp_path: Path) -> None:
    from vctool.preprocessing.tokenizer import Tokenizer

    assert {model.context for model in MODELS if model.name.startswith("pe-")} == {32}
    backbone = build("tiny-pe")
    backbone.write_tokenizer(tmp_path, 32)
    batch = Tokenizer.load(tmp_path).encode(["a dog " * 15 + "jumps over the fence and runs away", "a dog"])
    assert batch.input_ids_BL.shape == (2, 32) and batch.input_ids_BL[0, -1] == 49407 and batch.truncated == [True, False]
    assert batch.dropped == ["jumps over the fence and runs away", ""] and batch.length_B.tolist() == [32, 4]


@torch.no_grad()
def test_trap_8_weights_of_quickgelu_in_the_plain_architecture_give_other_features(tmp_path: Path) -> None:
    """Nothing in such a file says so (OpenAI's own archives do: test_open_clip_checkpoints); the names of the table are right."""
    quick, plain = build("tiny-clip"), build("tiny-gelu")
    plain.model.load_state_dict(quick.model.state_dict())
    ids, mask = texts(quick)
    apart = (plain.text_states(ids, mask) - quick.text_states(ids, mask)).abs().max()
    assert apart > 1e-4
    for model in MODELS:
        quick_gelu = model.tag in ("openai", "dfn2b", "dfn5b")
        assert model.architecture.endswith("-quickgelu") == quick_gelu
        assert bool(open_clip.get_model_config(model.architecture).get("quick_gelu")) == quick_gelu
