"""Weight files: read in every packing, named when they are of another architecture, refused when they are no weights."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")
open_clip = pytest.importorskip("open_clip", reason="open_clip is part of the extra `train`")

import tinytowers  # noqa: E402, F401  (registers the families in miniature)

from vctool.errors import ModelError  # noqa: E402
from vctool.models.open_clip_backbone import OpenClipBackbone  # noqa: E402
from vctool.models.open_clip_checkpoint import architectures_of, bare_model, read_weight_file  # noqa: E402


def donor(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(OpenClipBackbone(name).model.state_dict())


def shapes(architecture: str) -> dict[str, torch.Tensor]:
    """The weights of a real architecture, without their numbers."""
    return dict(bare_model(architecture).state_dict())


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-siglip", "tiny-pe", "tiny-mobileclip"])
@pytest.mark.parametrize("packing", ["safetensors", "state_dict", "trained on several machines"])
def test_every_packing_gives_the_same_weights(name: str, packing: str, tmp_path: Path) -> None:
    weights, path = donor(name), tmp_path / "weights.bin"
    if packing == "safetensors":
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in weights.items()}, path)
    elif packing == "state_dict":
        torch.save(weights, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    torch.manual_seed(9)
    loaded = OpenClipBackbone(name, checkpoint=path).model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in weights.items())


class Archive(torch.nn.Module):
    """What OpenAI published: the tensors of CLIP under their names, in a TorchScript archive, with three numbers beside them."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in weights.items():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_buffer(leaf, value)
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def openai_archive(folder: Path) -> Path:
    weights = {name: value.half() for name, value in donor("tiny-clip").items()}
    with pytest.warns(FutureWarning):
        torch.jit.script(Archive(weights)).save(str(folder / "ViT-B-32.pt"))
    return folder / "ViT-B-32.pt"


def test_openais_own_archives_are_read(tmp_path: Path) -> None:
    loaded = OpenClipBackbone("tiny-clip", checkpoint=openai_archive(tmp_path)).model.state_dict()  # tiny-clip has quick GELU
    assert all(torch.equal(loaded[k], v.half().float()) for k, v in donor("tiny-clip").items())


def test_openais_weights_are_refused_by_an_architecture_without_quickgelu(tmp_path: Path) -> None:
    """Trap 8 of the reference: open_clip loads them, warns at most, and every feature is wrong."""
    import json

    config = open_clip.get_model_config("tiny-clip")
    (tmp_path / "tiny-gelu.json").write_text(json.dumps(config | {"quick_gelu": False}))
    open_clip.add_model_config(tmp_path / "tiny-gelu.json")
    try:
        path = openai_archive(tmp_path)
        with pytest.raises(ModelError, match=r"trained with QuickGELU, and tiny-gelu computes another function"):
            OpenClipBackbone("tiny-gelu", checkpoint=path)
        assert OpenClipBackbone("tiny-gelu", checkpoint=path, quick_gelu=True)
    finally:
        open_clip.factory._MODEL_CONFIGS.pop("tiny-gelu")


@pytest.mark.parametrize(
    ("given", "asked", "said"),
    [
        ("ViT-B-32", "ViT-B-16", r"is a ViT-B-32, you asked for ViT-B-16 \(ask for clip-b32-datacomp or clip-b32-laion2b or clip-b32"),
        ("ViT-B-32-256", "ViT-B-32", r"is a ViT-B-32-256, you asked for ViT-B-32 "),  # open_clip would stretch its positions
        ("PE-Core-T-16-384", "PE-Core-S-16-384", r"is a PE-Core-T-16-384, .* \(ask for pe-core-t16"),
    ],
)
def test_weights_of_another_architecture_are_told_by_name(
    given: str, asked: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vctool.models import open_clip_checkpoint as module

    model, state = bare_model(asked), shapes(given)
    with pytest.raises(ModelError, match=said) as caught:
        module.load_weights(model, asked, module.WeightFile(tmp_path / "w.pt", state, openai=False), quick_gelu=False)
    assert len(str(caught.value)) < 250


def test_an_architecture_is_recognised_among_all_that_open_clip_knows() -> None:
    assert architectures_of(shapes("ViT-B-16-SigLIP-256"))[0] == "ViT-B-16-SigLIP-256"
    assert architectures_of({"visual.proj": torch.zeros(3, 3)}) == []


def test_weights_that_are_nobodys_are_said_with_the_first_difference(tmp_path: Path) -> None:
    torch.save({k: v for k, v in donor("tiny-clip").items() if k != "visual.proj"}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"does not hold the weights of tiny-clip: it lacks visual\.proj \(nor of any other"):
        OpenClipBackbone("tiny-clip", checkpoint=tmp_path / "w.pt")
    torch.save({"vision_model.embeddings.class_embedding": torch.zeros(3)}, tmp_path / "hf.pt")
    with pytest.raises(ModelError, match="in the names of the transformers library"):
        OpenClipBackbone("tiny-clip", checkpoint=tmp_path / "hf.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as weights"),
        (b"<html>404</html>" * 10, "cannot be read as weights|holds more than tensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a pointer of Git LFS"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b"x" * 40, "cannot be read as weights"),
    ],
)
def test_what_is_no_weight_file_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        read_weight_file(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_half_a_file_is_one_line(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("w.pt", "w.safetensors"):
        path = tmp_path / name
        (save_file if name.endswith("safetensors") else torch.save)(donor("tiny-clip"), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ModelError, match="damaged, cut short or something else"):
            read_weight_file(path)


def test_a_file_that_runs_code_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "w.pt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(ModelError):
        read_weight_file(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()
