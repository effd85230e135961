"""Video-ColBERT (arXiv 2503.19009): query tokens meet frame tokens (MMS_F) and video tokens (MMS_V)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vctool.config import ModelConfig, QueryConfig
from vctool.models.backbone import Backbone
from vctool.models.interaction import BranchScores, ScoreKernel, mean_max_sim
from vctool.models.similarity import Similarities
from vctool.models.temporal import build_temporal_encoder


class VideoTokens(NamedTuple):
    """Both token sets of C clips, L2-normalised, with masks of the valid ones."""

    frame_CFD: Tensor
    frame_mask_CF: Tensor
    video_CVD: Tensor
    video_mask_CV: Tensor


class QueryTokens(NamedTuple):
    """Query tokens of B texts, L2-normalised, with the mask of those that count."""

    query_BQD: Tensor
    query_mask_BQ: Tensor


def counted_tokens(config: QueryConfig, attention_mask_BL: Tensor) -> Tensor:
    """Which positions count, bool [B, L], from the mask of true tokens (SOT, words, EOT) and the expansion policy."""
    real = attention_mask_BL.bool()
    length_B1 = real.sum(dim=1, keepdim=True)
    position_1L = torch.arange(real.shape[1], device=real.device)[None]
    counted = real
    if config.counted in ("no_sot", "words"):
        counted = counted & (position_1L > 0)
    if config.counted == "words":
        counted = counted & (position_1L < length_B1 - 1)
    if config.expand == "on":
        counted = counted | ~real
    elif config.expand == "auto":
        counted = counted | (~real & (length_B1 <= config.auto_limit))
    return counted


class VideoColBERT(nn.Module):
    """Backbone, temporal encoder and query policy; every output token is L2-normalised.

    score_kernel: what multiplies tokens in `score`, see `mean_max_sim`; a matter of the machine, not of the model.
    """

    score_kernel: ScoreKernel = "auto"

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        backbone.adapt(config.backbone.adapter_rank)
        self.temporal = build_temporal_encoder(backbone.embed_dim, config.temporal)
        plain = config.similarity == "mean"
        self.similarities = None if plain else Similarities(config.similarity, config.interaction, backbone.embed_dim)

    def encode_query(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> QueryTokens:
        """Token ids (int64) and the mask of true tokens to query tokens. `pooled` policy: Q = 1."""
        return self.query_from_states(self.backbone.text_states(input_ids_BL, attention_mask_BL), input_ids_BL, attention_mask_BL)

    def query_from_states(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> QueryTokens:
        """The same from cached text states (frozen text tower)."""
        if self.config.query.policy == "pooled":
            pooled_BD = self.backbone.pooled_features(state_BLW, input_ids_BL, attention_mask_BL)
            return QueryTokens(F.normalize(pooled_BD, dim=-1)[:, None], torch.ones_like(attention_mask_BL[:, :1], dtype=torch.bool))
        token_BLD = self.backbone.text_features(state_BLW, input_ids_BL, attention_mask_BL)
        return QueryTokens(F.normalize(token_BLD, dim=-1), counted_tokens(self.config.query, attention_mask_BL))

    def encode_features(self, feature_CFD: Tensor, frame_mask_CF: Tensor) -> VideoTokens:
        """Un-normalised frame features and the mask of real frames to both token sets."""
        video_CVD, video_mask_CV = self.temporal(feature_CFD, frame_mask_CF)
        return VideoTokens(F.normalize(feature_CFD, dim=-1), frame_mask_CF, video_CVD, video_mask_CV)

    def encode_maps(self, map_CF: Tensor, frame_mask_CF: Tensor) -> VideoTokens:
        """Cached frame maps [C, F, ...] (frozen image tower) to both token sets."""
        clips, frames = frame_mask_CF.shape
        feature = self.backbone.frame_features(map_CF.reshape(clips * frames, *map_CF.shape[2:]))
        return self.encode_features(feature.reshape(clips, frames, -1), frame_mask_CF)

    def encode_video(self, frame_CFHWC: Tensor, frame_mask_CF: Tensor) -> VideoTokens:
        """uint8 frames [C, F, S, S, 3] to both token sets."""
        clips, frames = frame_mask_CF.shape
        flat = self.backbone.frame_map(frame_CFHWC.reshape(clips * frames, *frame_CFHWC.shape[2:]))
        return self.encode_maps(flat.reshape(clips, frames, *flat.shape[1:]), frame_mask_CF)

    def score(self, query: QueryTokens, video: VideoTokens) -> BranchScores:
        """MMS_F and MMS_V of every query against every clip, as interaction and similarity ask."""
        wanted, kernel = self.config.interaction, self.score_kernel
        if self.similarities is not None:
            by_frame, by_video = self.similarities.frame, self.similarities.video
            return BranchScores(
                by_frame(*query, video.frame_CFD, video.frame_mask_CF) if by_frame is not None else None,
                by_video(*query, video.video_CVD, video.video_mask_CV) if by_video is not None else None,
            )
        frame = mean_max_sim(*query, video.frame_CFD, video.frame_mask_CF, kernel=kernel) if "f" in wanted else None
        clip = mean_max_sim(*query, video.video_CVD, video.video_mask_CV, kernel=kernel) if "v" in wanted else None
        return BranchScores(frame, clip)

    def trainable_state(self) -> dict[str, Tensor]:
        """State dict without the frozen towers that come from pinned packages."""
        frozen = {id(p) for p in self.backbone.frozen_parameters()}
        towers = tuple(name for name, p in self.named_parameters() if id(p) in frozen)
        roots = {".".join(name.split(".")[:2]) + "." for name in towers}
        return {name: value for name, value in self.state_dict().items() if not name.startswith(tuple(roots) or ("\0",))}

    def moving_state(self) -> dict[str, Tensor]:
        """State dict of what training can change: parameters that are trained, and all buffers. With a frozen backbone it is small."""
        still = {name for name, p in self.named_parameters() if not p.requires_grad}
        return {name: value for name, value in self.trainable_state().items() if name not in still}


@torch.no_grad()
def count_parameters(model: VideoColBERT) -> dict[str, int]:
    """Number of parameters by part: backbone, temporal, trained, frozen."""
    frozen = {id(p) for p in model.backbone.frozen_parameters()}
    total = {"backbone": 0, "temporal": 0, "frozen": 0, "trained": 0}
    for name, parameter in model.named_parameters():
        total["temporal" if name.startswith("temporal.") else "backbone"] += parameter.numel()
        total["frozen" if id(parameter) in frozen or not parameter.requires_grad else "trained"] += parameter.numel()
    return total
