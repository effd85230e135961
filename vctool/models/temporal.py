"""Temporal encoders: frame features in, video tokens out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vctool.config import TemporalConfig


class Block(nn.Module):
    """One pre-norm transformer block with key masking; width W, GELU, no dropout."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BTW: Tensor, allowed: Tensor | None = None) -> Tensor:
        """allowed: bool, broadcastable to [B, 1, T, T], True where a token (row) may attend to another (column); None: all."""
        batch, length, width = x_BTW.shape
        qkv = self.qkv(self.norm_attention(x_BTW)).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=allowed)
        x_BTW = x_BTW + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        out_BTW: Tensor = x_BTW + self.mlp(self.norm_mlp(x_BTW))
        return out_BTW


class TemporalTransformer(nn.Module):
    """Contextualises F frame features and appends K learned visual expansion tokens: V = F + K.

    `y = Blocks([g + p, e])`, frame rows get the residual `y_i + g_i`; every output is L2-normalised. Takes un-normalised
    frame features, as CLIP4Clip's and DRL's sequence transformers do.
    """

    def __init__(self, width: int, config: TemporalConfig) -> None:
        super().__init__()
        self.config = config
        heads = max(1, width // config.head_width)
        self.position = nn.Parameter(torch.randn(config.max_frames, width) * config.position_std) if config.positions else None
        self.expansion = nn.Parameter(torch.randn(config.expansion_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, config.mlp_ratio) for _ in range(config.layers))

    def forward(self, feature_BFD: Tensor, frame_mask_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Returns video_BVD (L2-normalised) and video_mask_BV (bool)."""
        batch, frames, _ = feature_BFD.shape
        x = feature_BFD if self.position is None else feature_BFD + self.position[:frames]
        x = torch.cat([x, self.expansion.expand(batch, -1, -1)], dim=1)
        always = frame_mask_BF.new_ones(batch, self.expansion.shape[0])
        mask_BV = torch.cat([frame_mask_BF, always], dim=1)
        # A clip whose frames are all masked and that has no expansion token would attend to nothing: NaN. Let each token see itself.
        allowed = mask_BV[:, None, None, :] | torch.eye(mask_BV.shape[1], dtype=torch.bool, device=x.device)
        for block in self.blocks:
            x = block(x, allowed)
        if self.config.residual:
            x = torch.cat([x[:, :frames] + feature_BFD, x[:, frames:]], dim=1)
        return F.normalize(x, dim=-1), mask_BV


class MeanOfFrames(nn.Module):
    """One video token: the normalised mean of the normalised frame tokens (what CLIP4Clip calls meanP). V = 1, no time."""

    def forward(self, feature_BFD: Tensor, frame_mask_BF: Tensor) -> tuple[Tensor, Tensor]:
        token_BFD = F.normalize(feature_BFD, dim=-1)
        weight_BF1 = frame_mask_BF[..., None].to(token_BFD.dtype)
        mean_BD = (token_BFD * weight_BF1).sum(dim=1) / weight_BF1.sum(dim=1).clamp_min(1)
        return F.normalize(mean_BD, dim=-1)[:, None], frame_mask_BF.any(dim=1, keepdim=True)


class NoTemporalEncoder(nn.Module):
    """Video tokens are the frame tokens themselves: V = F."""

    def forward(self, feature_BFD: Tensor, frame_mask_BF: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(feature_BFD, dim=-1), frame_mask_BF


def build_temporal_encoder(width: int, config: TemporalConfig) -> nn.Module:
    """The encoder that `config.kind` names."""
    if config.kind == "transformer":
        return TemporalTransformer(width, config)
    return MeanOfFrames() if config.kind == "mean" else NoTemporalEncoder()
