"""Video-ColBERT models to and from a model directory (weights are safetensors, never pickle)."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from pathlib import Path

from torch import Tensor

from vctool.config import ModelConfig, PreprocessConfig, read_json, write_json
from vctool.errors import MissingExtraError, ModelError
from vctool.models.backbone import Backbone
from vctool.models.offline_backbone import ConseBackbone, build_offline_backbone
from vctool.models.open_clip_backbone import OpenClipBackbone
from vctool.models.video_colbert import VideoColBERT

WEIGHTS = "model.safetensors"


def build_model(config: ModelConfig, *, checkpoint: Path | None = None) -> VideoColBERT:
    """A model with fresh heads; `checkpoint` is a local open_clip weight file for the backbone (else random weights).

    Raises ModelError where the config's width is not the backbone's.
    """
    backbone: Backbone
    if config.backbone.kind == "offline":
        backbone = build_offline_backbone(config.backbone.name, config.embed_dim)
        if isinstance(backbone, ConseBackbone):
            backbone.embed_classes()
    else:
        backbone = OpenClipBackbone(config.backbone.name, checkpoint=checkpoint, quick_gelu=config.backbone.quick_gelu)
    if backbone.embed_dim != config.embed_dim:
        raise ModelError(
            f"{config.backbone.name} has width {backbone.embed_dim}, the config says {config.embed_dim}",
            "set embed_dim to the backbone's width",
        )
    temporal = config.temporal
    if temporal.kind == "transformer" and temporal.positions and config.frames > temporal.max_frames:
        raise ModelError(f"{config.frames} frames do not fit into temporal.max_frames = {temporal.max_frames}", "raise temporal.max_frames")
    if config.query.max_length > backbone.context_length:
        raise ModelError(f"query.max_length is {config.query.max_length}, {config.backbone.name} takes {backbone.context_length}")
    if isinstance(backbone, OpenClipBackbone) and not backbone.causal and config.query.max_length != backbone.context_length:
        raise ModelError(
            f"{config.backbone.name} reads pads with the words and must always see {backbone.context_length} tokens",
            f"set query.max_length to {backbone.context_length}",
        )
    return VideoColBERT(config, backbone)


def save_model(model: VideoColBERT, folder: Path) -> None:
    """Write config, weights, tokenizer and preprocessing of `model` into `folder` (made if need be). Graphs are the exporter's."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    versions = {name: metadata.version(name) for name in ("vctool", "torch")} | {"python": platform.python_version()}
    write_json(dataclasses.replace(model.config, versions=versions), folder / "config.json")
    write_json(model.backbone.preprocess, folder / "preprocess.json")
    model.backbone.write_tokenizer(folder, model.config.query.max_length)
    state = {name: value.detach().cpu().contiguous() for name, value in model.trainable_state().items()}
    temporary = folder / (WEIGHTS + ".tmp")
    save_file(state, temporary, metadata={"format": "pt", "vctool": versions["vctool"]})
    temporary.replace(folder / WEIGHTS)


def load_model(folder: Path) -> VideoColBERT:
    """The PyTorch model of a model directory, in evaluation mode. Raises ModelError naming what is missing or does not fit."""
    config = read_json(ModelConfig, folder / "config.json")
    backbone: Backbone
    if config.backbone.kind == "offline":
        backbone = build_offline_backbone(config.backbone.name, config.embed_dim)
    else:
        backbone = OpenClipBackbone(config.backbone.name, quick_gelu=config.backbone.quick_gelu)
        # What the weights were made with, not what the architecture's first weights were: they may differ.
        backbone.preprocess = read_json(PreprocessConfig, folder / "preprocess.json")
    model = VideoColBERT(config, backbone)
    state = read_weights(folder / WEIGHTS)
    wanted = model.trainable_state()
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has an unknown tensor {extra[0]}"
        raise ModelError(
            f"{folder / WEIGHTS} does not fit {config.backbone.name}: it {what}", "config.json and the weights are of different models"
        )
    state = {
        name: value.float() if value.is_floating_point() else value for name, value in state.items()
    }  # float16 on disk is exact in float32
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise ModelError(f"{folder / WEIGHTS}: {name} is {tuple(value.shape)}, the config asks for {tuple(wanted[name].shape)}")
    model.load_state_dict(state, strict=False)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; raises ModelError if it is missing or damaged."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtraError("safetensors", "train") from None
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", "the model directory is incomplete: fetch or train it again") from None
    except (SafetensorError, OSError) as problem:
        raise ModelError(f"{path} cannot be read: {problem}", "the model directory is damaged: fetch or train it again") from None
    return tensors
