"""The backbone families in miniature: the very classes of open_clip and timm, one layer deep, with random weights.

Importing registers the architectures. What an exporter has to get through is all there: rotary positions and attention pooling
(PE-Core), attention pooling and texts that read their pads (SigLIP), convolution branches that fold (MobileCLIP2), quick GELU.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.models import register_model
from timm.models.eva import _create_eva
from timm.models.fastvit import RepConditionalPosEnc, _create_fastvit
from timm.models.vision_transformer import _create_vision_transformer
from timm.models.vision_transformer_hybrid import ConvStem, _create_vision_transformer_hybrid

from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig
from vctool.models.checkpoint import build_model, save_model
from vctool.models.video_colbert import VideoColBERT

WIDTH = 32
FAMILIES = ("tiny-clip", "tiny-siglip", "tiny-pe", "tiny-mobileclip", "tiny-mobileclip-b")

__all__ = ["tinytower_mci", "tinytower_mobileclip", "tinytower_pe", "tinytower_siglip"]


@register_model
def tinytower_siglip(pretrained: bool = False, **kwargs: Any) -> Any:
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": WIDTH, "depth": 1, "num_heads": 2, "class_token": False, "global_pool": "map"}
    return _create_vision_transformer("vit_base_patch16_siglip_224", pretrained=False, **(sizes | kwargs))


@register_model
def tinytower_pe(pretrained: bool = False, **kwargs: Any) -> Any:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": WIDTH, "depth": 1, "num_heads": 2, "global_pool": "map"}
    sizes |= {"attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True, "ref_feat_shape": (2, 2)}
    sizes |= {"rope_grid_offset": 1.0, "rope_grid_indexing": "xy", "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 4.0}
    return _create_eva("vit_pe_core_tiny_patch16_384", pretrained=False, **(sizes | kwargs))


@register_model
def tinytower_mobileclip(pretrained: bool = False, **kwargs: Any) -> Any:
    from functools import partial

    sizes: dict[str, Any] = {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "mlp_ratios": (2, 2, 2, 2), "lkc_use_act": True}
    sizes |= {"se_downsamples": (False, False, True, True), "token_mixers": ("repmixer", "repmixer", "repmixer", "attention")}
    sizes |= {"pos_embs": (None, None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7)))}
    return _create_fastvit("fastvit_mci0", pretrained=False, **(sizes | kwargs))


@register_model
def tinytower_mci(pretrained: bool = False, **kwargs: Any) -> Any:
    sizes: dict[str, Any] = {"channels": (8, 8, WIDTH), "stride": (4, 2, 2), "kernel_size": (4, 2, 2), "padding": 0}
    backbone = ConvStem(in_chans=3, act_layer=torch.nn.GELU, **sizes)
    kept = {key: value for key, value in kwargs.items() if key not in ("device", "dtype")}
    shape = {"img_size": 32, "embed_dim": WIDTH, "depth": 1, "num_heads": 2, "no_embed_class": True}
    return _create_vision_transformer_hybrid(
        "vit_base_mci_224", backbone=backbone, embed_args={"proj": False}, pretrained=False, **(shape | kept)
    )


def _configs() -> dict[str, dict[str, Any]]:
    text: dict[str, Any] = {"context_length": 16, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1}
    timm: dict[str, Any] = {"image_size": 32, "timm_model_pretrained": False}
    vision = {"image_size": 32, "layers": 1, "width": WIDTH, "head_width": 16, "patch_size": 16}
    siglip = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    return {
        "tiny-clip": {"embed_dim": WIDTH, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text},
        "tiny-siglip": {
            "embed_dim": WIDTH,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": timm | {"timm_model_name": "tinytower_siglip", "timm_pool": "map", "timm_proj": "none"},
            "text_cfg": text | siglip,
        },
        "tiny-pe": {
            "embed_dim": WIDTH,
            "custom_text": True,
            "vision_cfg": timm | {"timm_model_name": "tinytower_pe", "timm_pool": "map", "timm_proj": None},
            "text_cfg": text,
        },
        "tiny-mobileclip": {
            "embed_dim": WIDTH,
            "custom_text": True,
            "vision_cfg": timm
            | {"timm_model_name": "tinytower_mobileclip", "timm_pool": "avg", "timm_proj": None, "timm_drop": 0.0, "image_size": 64},
            "text_cfg": text | {"no_causal_mask": True},
        },
        "tiny-mobileclip-b": {
            "embed_dim": WIDTH,
            "custom_text": True,
            "vision_cfg": timm | {"timm_model_name": "tinytower_mci", "timm_pool": "token", "timm_proj": None, "timm_drop": 0.0},
            "text_cfg": text | {"no_causal_mask": False},
        },
    }


def _register() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, config in _configs().items():
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(config))
            open_clip.add_model_config(path)


def tiny_model(family: str, *, temporal: str = "transformer") -> VideoColBERT:
    """A model of one of FAMILIES with random weights, the same ones every time."""
    torch.manual_seed(0)
    config = ModelConfig(
        name=family,
        embed_dim=WIDTH,
        frames=4,
        backbone=BackboneConfig("open_clip", family),
        query=QueryConfig(max_length=16),
        temporal=TemporalConfig(kind=temporal, layers=1, head_width=16, mlp_ratio=2.0, max_frames=8),  # type: ignore[arg-type]
    )
    model = build_model(config).eval()
    with torch.no_grad():
        for module in model.modules():
            # Fresh batch norms do nothing, and folding them would prove nothing.
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model


def write_tiny_model(family: str, folder: Path, **options: Any) -> Path:
    """The same as a model directory without graphs."""
    save_model(tiny_model(family, **options), folder)
    return folder


_register()
