"""What every backbone offers: frames to frame features, token ids to text token features, both in one joint space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from vctool.config import PreprocessConfig


class Backbone(nn.Module, ABC):
    """A pair of towers. Width D is `embed_dim`; frames are uint8 [N, S, S, 3] as the preprocessing leaves them.

    Encoding a frame has two steps, so that a frozen first step can be computed once and cached:
    `frame_map` (the part that may be frozen) and `frame_head` (what is trained on top; may be the identity).
    The same for text: `text_states` and `text_head`.
    """

    embed_dim: int
    preprocess: PreprocessConfig
    context_length: int
    pad_states: bool = True
    """Whether `text_head` reads the states at pad positions (if not, they need not be computed)."""

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
        return self.frame_head(self.frame_map(frame_NHWC))


def normalize_pixels(frame_NHWC: Tensor, config: PreprocessConfig) -> Tensor:
    """uint8 [N, S, S, 3] to float32 [N, 3, S, S], (x / 255 - mean) / std per channel; in memory the channels stay last."""
    mean = torch.tensor(config.mean, device=frame_NHWC.device) * 255
    std = torch.tensor(config.std, device=frame_NHWC.device) * 255
    return ((frame_NHWC.float() - mean) / std).permute(0, 3, 1, 2)
