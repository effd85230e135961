"""From a batch's frames and captions to its scores, the same way in training and in validation."""

from __future__ import annotations

from torch import Tensor

from vctool.models.interaction import BranchScores
from vctool.models.video_colbert import QueryTokens, VideoColBERT, VideoTokens
from vctool.training.precision import Precision
from vctool.training.texts import TextInput


def encode_frames(model: VideoColBERT, frames: Tensor, frame_mask_CF: Tensor, *, pixels: bool, precision: Precision) -> Tensor:
    """Pixels uint8 [C, F, S, S, 3] or frame maps [C, F, ...] to un-normalised float32 frame features [C, F, D]."""
    clips, count = frame_mask_CF.shape
    flat = frames.to(precision.device, non_blocking=True).flatten(0, 1)
    with precision.autocast():
        feature = model.backbone.frame_head(model.backbone.frame_map(flat) if pixels else flat.float())
    return feature.float().reshape(clips, count, -1)


def encode_clips(model: VideoColBERT, feature_CFD: Tensor, frame_mask_CF: Tensor, precision: Precision) -> VideoTokens:
    """Frame features to both token sets, float32."""
    with precision.autocast():
        tokens = model.encode_features(feature_CFD, frame_mask_CF.to(precision.device))
    return VideoTokens(tokens.frame_CFD.float(), tokens.frame_mask_CF, tokens.video_CVD.float(), tokens.video_mask_CV)


def encode_texts(model: VideoColBERT, text: TextInput, precision: Precision) -> QueryTokens:
    """Captions to query tokens, float32."""
    ids, mask = text.input_ids_BL.to(precision.device), text.attention_mask_BL.to(precision.device)
    with precision.autocast():
        if text.state_BLW is None:
            query = model.encode_query(ids, mask)
        else:
            query = model.query_from_states(text.state_BLW.to(precision.device).float(), ids, mask)
    return QueryTokens(query.query_BQD.float(), query.query_mask_BQ)


def batch_scores(
    model: VideoColBERT, frames: Tensor, frame_mask_BF: Tensor, text: TextInput, *, pixels: bool, precision: Precision
) -> BranchScores:
    """Every caption of a batch against every clip of it: [B, B] float32 for each branch."""
    feature_BFD = encode_frames(model, frames, frame_mask_BF, pixels=pixels, precision=precision)
    return model.score(encode_texts(model, text, precision), encode_clips(model, feature_BFD, frame_mask_BF, precision))
