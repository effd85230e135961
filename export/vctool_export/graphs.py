"""The graphs of a model: what goes in, what comes out, and the PyTorch module behind each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vctool.models.backbone import Backbone
from vctool.models.open_clip_backbone import OpenClipBackbone
from vctool.models.video_colbert import VideoColBERT


class TextGraph(nn.Module):
    """input_ids int64 [B, L], attention_mask int64 [B, L] -> query_tokens float32 [B, Q, D], query_mask bool [B, Q]."""

    def __init__(self, model: VideoColBERT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        query = self.model.encode_query(input_ids, attention_mask)
        return query.query_BQD, query.query_mask_BQ


class FrameGraph(nn.Module):
    """frames uint8 [N, S, S, 3] -> frame_features float32 [N, D], not normalised. Pixel normalisation is inside."""

    def __init__(self, model: VideoColBERT, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone = backbone or model.backbone

    def forward(self, frames: Tensor) -> Tensor:
        features: Tensor = self.backbone(frames)
        return features


class TemporalGraph(nn.Module):
    """frame_features float32 [B, F, D], frame_mask bool [B, F] -> video_tokens float32 [B, V, D], video_mask bool [B, V]."""

    def __init__(self, model: VideoColBERT) -> None:
        super().__init__()
        self.temporal = model.temporal

    def forward(self, frame_features: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens, mask = self.temporal(frame_features, frame_mask)
        return tokens, mask


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export. Example inputs have a batch of 2: an exporter treats sizes 0 and 1 as constants."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, Any]]


def graph_specs(model: VideoColBERT) -> list[GraphSpec]:
    """The graphs to export: those of `graph_modules`, with the train-time branches of MobileCLIP's convolutions folded into one."""
    specs = graph_modules(model)
    return [replace(spec, module=FrameGraph(model, reparameterized(model.backbone))) if spec.name == "frame" else spec for spec in specs]


def reparameterized(backbone: Backbone) -> Backbone:
    """`backbone`, or where its image tower has branches that fold into single convolutions, a copy with these folded.

    The same function, about 1.5 times as fast; unfolded, the graph would keep every batch norm.
    """
    if not any(hasattr(module, "reparameterize") or hasattr(module, "fuse") for module in backbone.modules()):
        return backbone
    from timm.utils.model import reparameterize_model

    folded = copy.deepcopy(backbone)
    for name, child in folded.named_children():
        setattr(folded, name, reparameterize_model(child, inplace=True))
    return folded.eval()


def dynamic_length(model: VideoColBERT) -> bool:
    """Whether the text tower takes texts shorter than it is padded to: one that reads its pads with the words must not."""
    return not isinstance(model.backbone, OpenClipBackbone) or model.backbone.causal


def graph_modules(model: VideoColBERT) -> list[GraphSpec]:
    """Text, frame, temporal of `model` as it was trained.

    Batch is dynamic everywhere, the number of frames in `temporal`, the text length where `dynamic_length` allows.
    """
    length, size = model.config.query.max_length, model.backbone.preprocess.size
    width, frames = model.backbone.embed_dim, model.config.frames
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, 400, (2, length), generator=generator)
    attention_mask = torch.ones(2, length, dtype=torch.long)
    attention_mask[0, length // 2 :] = 0
    pixels = torch.randint(0, 256, (2, size, size, 3), generator=generator, dtype=torch.uint8)
    features = torch.randn(2, frames, width, generator=generator)
    frame_mask = torch.ones(2, frames, dtype=torch.bool)
    frame_mask[0, frames - 1] = False
    batch = torch.export.Dim("batch", min=1, max=4096)
    longest = model.config.temporal.max_frames if model.config.temporal.kind == "transformer" else 4096
    frame = torch.export.Dim("frames", min=1, max=longest)
    text_axes: dict[int, Any] = {0: batch}
    if dynamic_length(model):
        text_axes[1] = torch.export.Dim("length", min=2, max=model.backbone.context_length)
    return [
        GraphSpec(
            "text",
            TextGraph(model),
            {"input_ids": input_ids, "attention_mask": attention_mask},
            ("query_tokens", "query_mask"),
            {"input_ids": text_axes, "attention_mask": text_axes},
        ),
        GraphSpec("frame", FrameGraph(model), {"frames": pixels}, ("frame_features",), {"frames": {0: batch}}),
        GraphSpec(
            "temporal",
            TemporalGraph(model),
            {"frame_features": features, "frame_mask": frame_mask},
            ("video_tokens", "video_mask"),
            {"frame_features": {0: batch, 1: frame}, "frame_mask": {0: batch, 1: frame}},
        ),
    ]
