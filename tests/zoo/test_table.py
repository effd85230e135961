"""The table of names says what open_clip records and what its architectures are."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from vctool.errors import UsageProblem
from vctool.zoo.table import BY_NAME, MODELS, ZooModel, find, unknown

NAMES = {
    "siglip-b16", "siglip2-b16", "siglip2-b32-256", "pe-core-t16", "pe-core-s16", "pe-core-b16", "pe-core-l14", "clip-b32", "clip-b16",
    "clip-l14", "clip-b32-datacomp", "clip-b16-datacomp", "clip-l14-datacomp", "clip-b32-laion2b", "clip-b16-laion2b", "clip-l14-laion2b",
    "mobileclip2-s0", "mobileclip2-s2", "mobileclip2-b", "dfn-b16", "dfn-l14", "dfn-h14",
}  # fmt: skip


def test_every_promised_name_is_there_once() -> None:
    assert set(BY_NAME) == NAMES and len(MODELS) == len(NAMES)
    assert find("SigLIP-B16") is BY_NAME["siglip-b16"] and find("ViT-B-16") is None


def test_a_name_that_is_not_there_leads_to_one_that_is() -> None:
    assert isinstance(unknown("siglip-b61"), UsageProblem) and "siglip-b16" in str(unknown("siglip-b61"))
    assert "clip-b32-datacomp, clip-b32-laion2b" in str(unknown("ViT-B-32")) and "--checkpoint FILE" in str(unknown("ViT-B-32"))


def test_a_licence_that_forbids_or_leaves_open_commercial_use_says_so() -> None:
    for model in MODELS:
        apple = model.name.startswith(("mobileclip", "dfn"))
        assert (model.licence.commercial is True) != apple and (not apple or model.licence.note)


def test_the_table_in_the_documents_is_this_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    shown = {row[0].strip("`"): row[1:] for row in ([c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()) if row}
    for model in MODELS:
        megabytes, speed, coco, msrvtt, width, tokens, licence = shown[model.name]
        assert int(megabytes.replace(",", "")) == model.megabytes and (int(width), int(tokens)) == (model.dim, model.context)
        for said, value in ((coco, model.coco and model.coco.value), (msrvtt, model.msrvtt and model.msrvtt.value)):
            assert said == (str(value) if value else "–"), model.name
        assert speed == (f"{model.frames_per_cpu_second:.1f}" if model.frames_per_cpu_second else "–")
        assert ("non-commercial" in licence) == (model.licence.commercial is False)


def test_no_figure_is_without_its_source() -> None:
    for figure in (f for m in MODELS for f in (m.coco, m.msrvtt) if f):
        assert 0 < figure.value < 100 and len(figure.source) > 8


@functools.cache
def bare_tower(architecture: str) -> Any:
    """The architecture without its numbers, once for all names of it."""
    from vctool.models.open_clip_checkpoint import bare_model

    return bare_model(architecture)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_a_row_is_what_open_clip_says_and_what_its_architecture_is(model: ZooModel) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is part of the extra `export`")
    from open_clip.pretrained import get_pretrained_cfg

    recorded = get_pretrained_cfg(model.architecture, model.tag)
    assert recorded["hf_hub"] == model.repository + "/"
    config = open_clip.get_model_config(model.architecture)
    # A tag that was trained with QuickGELU loads into the other architecture too, and every feature would be wrong.
    assert bool(recorded.get("quick_gelu")) == bool(config.get("quick_gelu"))
    wanted = config["text_cfg"].get("hf_tokenizer_name")
    assert (model.tokenizer_file is not None) == (wanted is not None) and wanted in (None, model.repository)
    bare = bare_tower(model.architecture)
    image = sum(p.numel() for p in bare.visual.parameters())
    text = sum(p.numel() for p in bare.parameters()) - image
    assert (round(image / 1e6, 1), round(text / 1e6, 1)) == pytest.approx(model.parameters, abs=0.051)
    side = bare.visual.image_size
    assert (config["embed_dim"], config["text_cfg"]["context_length"]) == (model.dim, model.context)
    assert (side if isinstance(side, int) else side[0]) == model.size
