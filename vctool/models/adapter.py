"""A small trained correction of frozen features: what a few hundred captioned clips can afford to learn.

`y = x + U V x`, with V of `rank` rows and U zero at the start, so that an untrained adapter is the model it was put on, bit for bit.
There is no bias: features of any length are turned alike, and what is compared afterwards are directions.
"""

from __future__ import annotations

from torch import Tensor, nn


class LowRankAdapter(nn.Module):
    """features [..., D] to features [..., D]; 2 * D * rank parameters."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, feature: Tensor) -> Tensor:
        corrected: Tensor = feature + self.up(self.down(feature))
        return corrected


class Adapters(nn.Module):
    """One adapter for the features of frames, one for those of texts (tokens and the pooled vector alike)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.frame = LowRankAdapter(width, rank)
        self.text = LowRankAdapter(width, rank)
