"""`vctool fetch` from the hub, or from files where there is none: a whole model directory, or one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commandline import Vctool
from hubserver import COMMIT, Hub, hub

torch = pytest.importorskip("torch", reason="fetching open_clip's weights needs torch (the extra `export`)")
pytest.importorskip("onnx")
open_clip = pytest.importorskip("open_clip")

import tinytowers  # noqa: E402, F401  (registers the families in miniature)

from vctool.zoo import table  # noqa: E402

__all__ = ["hub"]
WORDS = ["<pad>", "</s>", "<unk>", "a", "dog", "catches", "frisbee", "red", "the"]


def word_tokenizer() -> str:
    """A vocabulary in the form of SigLIP's: every text ends with </s>, which is also the pad."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return str(made.to_str())


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """A SigLIP in miniature as open_clip's architecture, and its two files as the hub has them."""
    folder = tmp_path_factory.mktemp("architecture")
    config = open_clip.get_model_config("tiny-siglip")
    words = {"hf_tokenizer_name": "owner/siglip", "tokenizer_kwargs": {"clean": "canonicalize"}, "vocab_size": 500}
    (folder / "mini-siglip.json").write_text(json.dumps(config | {"text_cfg": config["text_cfg"] | words}))
    open_clip.add_model_config(folder / "mini-siglip.json")
    from safetensors.torch import save

    torch.manual_seed(5)
    model = open_clip.create_model("mini-siglip", pretrained=None)
    weights = save({name: value.contiguous() for name, value in model.state_dict().items()})
    yield {"open_clip_model.safetensors": weights, "tokenizer.json": word_tokenizer().encode()}
    open_clip.factory._MODEL_CONFIGS.pop("mini-siglip")


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of the tests' own: a SigLIP, and one whose licence forbids commercial use."""
    sizes = {"parameters": (0.1, 0.1), "dim": 32, "context": 16, "size": 32, "what": "for tests"}
    for name, licence in (("mini-siglip", table.APACHE), ("mini-phone", table.APPLE_RESEARCH)):
        row = table.ZooModel(name, "mini-siglip", "", "owner/siglip", licence, **sizes, tokenizer_file="tokenizer.json")  # type: ignore[arg-type]
        monkeypatch.setitem(table.BY_NAME, name, row)


def test_a_name_becomes_a_model_directory_that_computes_what_open_clip_does(
    vctool: Vctool, hub: Hub, siglip: dict[str, bytes], tmp_path: Path
) -> None:
    from vctool.runtime.encoder import TextEncoder, VideoEncoder
    from vctool.runtime.model_directory import ModelDirectory

    hub.repositories["owner/siglip"] = siglip
    done = vctool("fetch", "mini-siglip", tmp_path / "model", "--frames", "4", "--json")
    assert done.code == 0, done.err
    assert "licence of the weights: Apache-2.0: commercial use allowed" in done.err
    told = json.loads(done.out)
    assert told["architecture"] == "mini-siglip" and told["commercial"] is True and len(told["sha256"]) == 64
    folder = tmp_path / "model"
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "preprocess.json", "tokenizer.json", "README.md", "onnx/text.onnx"} <= present
    card = (folder / "README.md").read_text()
    assert f"huggingface.co/owner/siglip, file `open_clip_model.safetensors`, revision `{COMMIT}`" in card
    assert told["sha256"] in card and "Apache-2.0" in card

    directory = ModelDirectory.open(folder, verify="all")
    torch.manual_seed(5)
    original = open_clip.create_model("mini-siglip", pretrained=None).eval()
    ids = torch.tensor([[3, 4, 5, 3, 6, 1, *[1] * 10]])
    with torch.no_grad():
        wanted = original.encode_text(ids, normalize=True).numpy()
    np.testing.assert_allclose(TextEncoder(directory).encode(["A dog catches a Frisbee!"])[0].query_QD, wanted, atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        images = original.encode_image(((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(VideoEncoder(directory, provider="onnxruntime").frame_features(pixels), images, atol=1e-5)


def test_without_a_network_it_is_one_line_with_two_ways_out(vctool: Vctool, hub: Hub, tmp_path: Path) -> None:
    hub.down = True
    done = vctool("fetch", "siglip-b16", tmp_path / "model")
    licence, error, hint = done.err.splitlines()
    assert done.code == 1 and "Apache-2.0" in licence
    assert error.startswith("error: no network: ") and error.endswith("timm/ViT-B-16-SigLIP is not in the cache")
    assert f"vctool fetch siglip-b16 {tmp_path}/model --checkpoint FILE --tokenizer tokenizer.json" in hint and "on another machine" in hint
    assert not (tmp_path / "model").exists()


def test_a_licence_that_forbids_commercial_use_is_said_aloud_before_anything_is_downloaded(
    vctool: Vctool, hub: Hub, tmp_path: Path
) -> None:
    hub.down = True
    done = vctool("fetch", "mini-phone", tmp_path / "model")
    first = done.err.splitlines()[0]
    assert "Apple Machine Learning Research Model licence: NON-COMMERCIAL (non-commercial research only" in first


@pytest.mark.parametrize("trouble", ["altered", "cut", "another architecture", "not safetensors"])
def test_what_goes_wrong_leaves_no_directory(trouble: str, vctool: Vctool, hub: Hub, siglip: dict[str, bytes], tmp_path: Path) -> None:
    hub.repositories["owner/siglip"] = dict(siglip)
    wanted, code = "", 1
    if trouble == "altered":
        hub.altered, wanted, code = True, "is not what was published", 3
    elif trouble == "cut":
        hub.repositories["owner/siglip"]["open_clip_model.safetensors"] *= 2
        wanted = "cannot be read as weights"
    elif trouble == "another architecture":
        from safetensors.torch import save

        state = open_clip.create_model("tiny-clip", pretrained=None).state_dict()
        hub.repositories["owner/siglip"]["open_clip_model.safetensors"] = save({k: v.contiguous() for k, v in state.items()})
        wanted = "is a tiny-clip, you asked for mini-siglip"
    else:
        hub.repositories["owner/siglip"]["open_clip_model.safetensors"] = b"<html>not here</html>"
        wanted = "open_clip_model.safetensors"
    done = vctool("fetch", "mini-siglip", tmp_path / "model")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == code and len(errors) == 1 and wanted in errors[0], done.err
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".model-*"))


def test_a_tokenizer_file_that_is_missing_is_said_before_the_weights_are_read(
    vctool: Vctool, siglip: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").write_bytes(siglip["open_clip_model.safetensors"])
    done = vctool("fetch", "mini-siglip", tmp_path / "model", "--checkpoint", tmp_path / "w.safetensors")
    assert "error: mini-siglip needs its vocabulary, tokenizer.json of owner/siglip, and the file is missing" in done.err
    assert "beside the checkpoint, or name it with --tokenizer FILE" in done.err
    done = vctool(
        "fetch", "mini-siglip", tmp_path / "model", "--checkpoint", tmp_path / "w.safetensors", "--tokenizer", tmp_path / "none.json"
    )
    assert "none.json: no such tokenizer file" in done.err


def test_a_disk_without_room_for_the_directory_is_said_before_it_is_written(
    vctool: Vctool, siglip: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vctool_export import from_open_clip

    for name, content in siglip.items():  # the tokenizer lies beside the weights, and is found there
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(from_open_clip, "_COPIES", 1e12)
    done = vctool("fetch", "mini-siglip", tmp_path / "model", "--checkpoint", tmp_path / "open_clip_model.safetensors")
    assert done.code == 1 and "error: the model directory needs " in done.err and "choose another folder" in done.err
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".model-*"))


def test_a_sum_that_a_local_file_has_not_is_refused(vctool: Vctool, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    done = vctool("fetch", "clip-b32", tmp_path / "model", "--checkpoint", tmp_path / "w.pt", "--sha256", "A" * 64)
    assert done.code == 3 and "has the sum 9a129038d9a0…, not aaaaaaaaaaaa…" in done.err


def test_weights_of_an_architecture_that_differ_in_their_preprocessing_are_told_apart_by_their_tag(tmp_path: Path) -> None:
    """LAION's ViT-L-14 is normalised by 0.5, OpenAI's is not; the directory keeps it when it is loaded and exported again."""
    from vctool.models.open_clip_backbone import preprocess_of

    class Fake:
        visual = type("V", (), {"image_size": 224})

    assert preprocess_of("ViT-L-14", Fake).mean[0] == pytest.approx(0.48145466)
    assert preprocess_of("ViT-L-14", Fake, "laion2b_s32b_b82k").mean == (0.5, 0.5, 0.5)
    from vctool.errors import ModelError

    with pytest.raises(ModelError, match="knows no weights 'laion' of ViT-L-14"):
        preprocess_of("ViT-L-14", Fake, "laion")

    from tinytowers import tiny_model

    from vctool.config import PreprocessConfig
    from vctool.models.checkpoint import load_model, save_model

    model = tiny_model("tiny-clip")
    model.backbone.preprocess = PreprocessConfig(
        size=32, resize="squash", interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    save_model(model, tmp_path)
    assert load_model(tmp_path).backbone.preprocess == model.backbone.preprocess
