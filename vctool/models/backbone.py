"""What every backbone offers: frames to frame features, token ids to text token features, both in one joint space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from vctool.config import PreprocessConfig
from vctool.models.adapter import Adapters


class Backbone(nn.Module, ABC):
    """A pair of towers. Width D is `embed_dim`; frames are uint8 [N, S, S, 3] as the preprocessing leaves them.

    Encoding a frame has two steps, so that a frozen first step can be computed once and cached:
    `frame_map` (the part that may be frozen) and `frame_head` (what is trained on top; may be the identity).
    The same for text: `text_states` and `text_head`. `frame_features`, `text_features` and `pooled_features` are what the rest of
    the model reads: the heads, and where there are adapters their correction.
    """

    embed_dim: int
    preprocess: PreprocessConfig
    context_length: int
    pad_states: bool = True
    """Whether `text_head` reads the states at pad positions (if not, they need not be computed)."""

    def __init__(self) -> None:
        super().__init__()
        # Not a class attribute: it would hide the module that `adapt` registers.
        self.adapters: Adapters | None = None

    def adapt(self, rank: int) -> None:
        """Put adapters of this rank (0: none) behind both heads. They change nothing until they are trained."""
        self.adapters = Adapters(self.embed_dim, rank) if rank else None

    def frame_features(self, frame_map: Tensor) -> Tensor:
        """`frame_head` with its correction: un-normalised frame features [N, D]."""
        feature_ND = self.frame_head(frame_map)
        return feature_ND if self.adapters is None else self.adapters.frame(feature_ND)

    def text_features(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """`text_head` with its correction: un-normalised text token features [B, L, D]."""
        token_BLD = self.text_head(state_BLW, input_ids_BL, attention_mask_BL)
        return token_BLD if self.adapters is None else self.adapters.text(token_BLD)

    def pooled_features(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """`text_pooled` with its correction: the un-normalised pooled text vector [B, D]."""
        pooled_BD = self.text_pooled(state_BLW, input_ids_BL, attention_mask_BL)
        return pooled_BD if self.adapters is None else self.adapters.text(pooled_BD)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """All parameters but those of the adapters."""
        own = set() if self.adapters is None else {id(p) for p in self.adapters.parameters()}
        return [p for p in self.parameters() if id(p) not in own]

    @abstractmethod
    def frame_map(self, frame_NHWC: Tensor) -> Tensor:
        """uint8 frames to cacheable features [N, ...]."""

    @abstractmethod
    def frame_head(self, frame_map: Tensor) -> Tensor:
        """Cacheable features to un-normalised frame features [N, D]."""

    @abstractmethod
    def text_states(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Token ids to cacheable states [B, L, W]. attention_mask is True at true tokens (specials and words)."""

    @abstractmethod
    def text_head(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """States to un-normalised text token features [B, L, D]."""

    @abstractmethod
    def text_pooled(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """States to the un-normalised pooled text vector [B, D]."""

    @abstractmethod
    def write_tokenizer(self, folder: Path, length: int | None = None) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, so that the runtime needs neither torch nor open_clip.

        `length`: tokens that a text is padded and cut to; the tower's context length if None.
        """

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Parameters that never train and are not stored in the model directory (towers that come from a pinned package)."""
        return []

    def forward(self, frame_NHWC: Tensor) -> Tensor:
        """Frames straight to frame features [N, D]."""
        return self.frame_features(self.frame_map(frame_NHWC))


def normalize_pixels(frame_NHWC: Tensor, config: PreprocessConfig) -> Tensor:
    """uint8 [N, S, S, 3] to float32 [N, 3, S, S], (x / 255 - mean) / std per channel; in memory the channels stay last."""
    mean = torch.tensor(config.mean, device=frame_NHWC.device) * 255
    std = torch.tensor(config.std, device=frame_NHWC.device) * 255
    return ((frame_NHWC.float() - mean) / std).permute(0, 3, 1, 2)
