"""The offline model without training: what its frames become, against NumPy, and that it finds real clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM  # noqa: E402
from vctool.demo.show import bundled_model  # noqa: E402
from vctool.errors import ModelError  # noqa: E402
from vctool.models.offline_backbone import ConseBackbone, imagenet_class_kinds, imagenet_class_names  # noqa: E402
from vctool.runtime.assemble import assemble  # noqa: E402

try:
    EFFICIENTNET_LITE0.locate()
    MINILM.locate()
except ModelError as problem:
    pytest.skip(f"{problem}", allow_module_level=True)
pytest.importorskip("timm", reason="timm comes with open_clip (the extra `train`)")


def test_every_class_says_what_it_is_a_kind_of() -> None:
    names, kinds = imagenet_class_names(), imagenet_class_kinds()
    assert len(names) == len(kinds) == 1000 and all(kind.strip() == kind != "" for kind in kinds)
    told = dict(zip(names, kinds, strict=True))
    assert (told["golden retriever"], told["lion"], told["grocery store"]) == ("sporting dog", "feline", "mercantile establishment")


def test_a_frame_is_the_softened_mean_of_its_likeliest_classes() -> None:
    """Against a calculation in float64 that shares no code with the model."""
    rng = np.random.default_rng(0)
    logits_NC, embedding_CD = rng.normal(0, 3, (4, 1000)), rng.normal(size=(1000, 384))
    wanted = []
    for logits in logits_NC:
        best = np.argsort(-logits)[:10]
        weight = np.exp((logits[best] - logits.max()) / 1.5)
        wanted.append((weight / weight.sum()) @ embedding_CD[best])
    model = ConseBackbone()
    model.class_embedding.copy_(torch.from_numpy(embedding_CD))
    found = model.frame_head(torch.from_numpy(logits_NC).float()).numpy()
    np.testing.assert_allclose(found, np.array(wanted), atol=1e-5)


@pytest.mark.slow
def test_real_clips_are_found_as_the_card_says(realclips: Path, tmp_path: Path) -> None:
    """A regression test, not a measurement: the numbers are those of docs/offline.md, less what rounding may cost."""
    from vctool.runtime.indexing import index_videos
    from vctool.runtime.model import load_model
    from vctool.runtime.search import search_all
    from vctool.store import open_store

    assemble(bundled_model("offline"), tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    index_videos([realclips / "captions.jsonl"], tmp_path / "c.npz", model, dtype="float16")
    rows = [json.loads(line) for line in (realclips / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [(caption, row["video"]) for row in rows for caption in row["captions"]]
    results = search_all([caption for caption, _ in asked], open_store(tmp_path / "c.npz"), model, k=10)
    places = [[hit.id for hit in result.hits] for result in results]
    first = np.mean([video == found[0] for (_, video), found in zip(asked, places, strict=True)])
    among_ten = np.mean([video in found for (_, video), found in zip(asked, places, strict=True)])
    assert first >= 0.40 and among_ten >= 0.71
