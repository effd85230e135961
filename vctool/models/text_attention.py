"""Attention of a text tower over its own tokens: who looks at whom, layer by layer.

Towers compute attention fused and keep no weights; they are computed again here from what each layer was given.
Shape letters: B texts, L tokens, W width, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vctool.errors import ModelError
from vctool.models.offline_backbone import HeadsBackbone
from vctool.models.open_clip_backbone import OpenClipBackbone
from vctool.models.temporal import Block
from vctool.models.video_colbert import VideoColBERT


@torch.no_grad()
def text_attention(model: VideoColBERT, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> tuple[list[Tensor], Tensor]:
    """Attention of each layer in which pads take part, mean over heads: float32 [B, L, L], rows (who looks) sum to 1.

    With it the query tokens [B, Q, D] of the same pass. Raises ModelError for a backbone whose pads attend to nothing.
    """
    backbone = model.backbone
    layers: list[nn.Module]
    if isinstance(backbone, HeadsBackbone):
        layers = list(backbone.text_blocks)
    elif isinstance(backbone, OpenClipBackbone):
        layers = [block.attn for block in backbone.text.transformer.resblocks]
    else:
        raise ModelError(
            f"the pads of a {model.config.backbone.name} model attend to nothing", "attention needs a model with token queries"
        )
    found: list[Tensor] = []

    def keep(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        weight_BHLL = _of_block(layer, *given, **named) if isinstance(layer, Block) else _of_multihead(layer, given, named)
        found.append(weight_BHLL.mean(dim=1))

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        query = model.encode_query(input_ids_BL, attention_mask_BL)
    finally:
        for hook in hooks:
            hook.remove()
    return found, query.query_BQD


def _of_block(block: Block, x_BLW: Tensor, allowed: Tensor | None = None) -> Tensor:
    """[B, H, L, L] of one of our own blocks."""
    batch, length, width = x_BLW.shape
    qkv = block.qkv(block.norm_attention(x_BLW)).reshape(batch, length, 3, block.heads, width // block.heads)
    query, key = qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2)
    return _weights(query, key, allowed)


def _of_multihead(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """[B, H, L, L] of `nn.MultiheadAttention` called with the same tokens for query, key and value."""
    if not isinstance(layer, nn.MultiheadAttention) or layer.in_proj_weight is None:
        raise ModelError("this text tower has an attention layer that vctool cannot read")
    tokens = given[0] if given else named["query"]
    x_BLW = tokens if layer.batch_first else tokens.transpose(0, 1)
    batch, length, width = x_BLW.shape
    bias = None if layer.in_proj_bias is None else layer.in_proj_bias[: 2 * width]
    both = nn.functional.linear(x_BLW, layer.in_proj_weight[: 2 * width], bias)
    query, key = (part.reshape(batch, length, layer.num_heads, -1).transpose(1, 2) for part in both.chunk(2, dim=-1))
    return _weights(query, key, named.get("attn_mask"))


def _weights(query_BHLD: Tensor, key_BHLD: Tensor, mask: Tensor | None) -> Tensor:
    scores = query_BHLD @ key_BHLD.transpose(-1, -2) / query_BHLD.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights: Tensor = scores.softmax(dim=-1)
    return weights
