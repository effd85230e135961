"""From a batch's frames and captions to its scores, the same way in training and in validation."""

from __future__ import annotations

import torch
from torch import Tensor

from vctool.models.video_colbert import QueryTokens, VideoColBERT, VideoTokens
from vctool.training.precision import Precision
from vctool.training.texts import TextInput


def encode_frames(model: VideoColBERT, frames: Tensor, frame_mask_CF: Tensor, *, pixels: bool, precision: Precision) -> Tensor:
    """Pixels uint8 [C, F, S, S, 3] or frame maps [C, F, ...] to un-normalised frame features [C, F, D] in the wide format."""
    clips, count = frame_mask_CF.shape
    flat = frames.to(precision.device, non_blocking=True).flatten(0, 1)
    with precision.autocast():
        feature = model.backbone.frame_features(model.backbone.frame_map(flat) if pixels else flat.to(precision.wide))
    return feature.to(precision.wide).reshape(clips, count, -1)


def encode_clips(model: VideoColBERT, feature_CFD: Tensor, frame_mask_CF: Tensor, precision: Precision) -> VideoTokens:
    """Frame features to both token sets, in the wide format."""
    with precision.autocast():
        tokens = model.encode_features(feature_CFD, frame_mask_CF.to(precision.device))
    return VideoTokens(tokens.frame_CFD.to(precision.wide), tokens.frame_mask_CF, tokens.video_CVD.to(precision.wide), tokens.video_mask_CV)


def encode_texts(model: VideoColBERT, text: TextInput, precision: Precision) -> QueryTokens:
    """Captions to query tokens, in the wide format."""
    ids, mask = text.input_ids_BL.to(precision.device), text.attention_mask_BL.to(precision.device)
    with precision.autocast():
        if text.state_BLW is None:
            query = model.encode_query(ids, mask)
        else:
            query = model.query_from_states(text.state_BLW.to(precision.device, precision.wide), ids, mask)
    return QueryTokens(query.query_BQD.to(precision.wide), query.query_mask_BQ)


def present(feature_UFD: Tensor, frame_mask_UF: Tensor, row_B: Tensor, reversed_B: Tensor) -> tuple[Tensor, Tensor]:
    """Frame features of U clips as B presentations of them: feature_BFD and mask_BF.

    row_B: which clip each presentation shows. A reversed one has its real frames in the opposite order. A frame's features
    do not depend on when it is shown, so a clip and its reversal need them computed once.
    """
    feature_BFD, mask_BF = feature_UFD[row_B.to(feature_UFD.device)], frame_mask_UF[row_B]
    place_1F, count_B1 = torch.arange(mask_BF.shape[1])[None], mask_BF.sum(dim=1, keepdim=True)
    order_BF = torch.where(reversed_B[:, None] & mask_BF, count_B1 - 1 - place_1F, place_1F).to(feature_BFD.device)
    return feature_BFD.gather(1, order_BF[..., None].expand_as(feature_BFD)), mask_BF
