"""The device and the number format of a run. Scores and losses are float32 under every setting."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from vctool.errors import UsageProblem

PrecisionName = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """`device` is CUDA where there is one, `name` the format of matrix products, `wide` that of tokens, scores and losses.

    float32 is the wide format of all runs; float64 is there to prove things with.
    """

    device: torch.device
    name: PrecisionName
    wide: torch.dtype = torch.float32

    @property
    def scaled(self) -> bool:
        """Whether gradients need a scaler, or small ones would vanish."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager[object]:
        """The context for the model's forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.name])


def choose_precision(name: PrecisionName, device: torch.device | None = None) -> Precision:
    """Raises UsageProblem for fp16 without a GPU."""
    chosen = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "fp16" and chosen.type == "cpu":
        raise UsageProblem("fp16 needs a GPU, and torch sees none", 'use optim.precision = "bf16" or "fp32"')
    return Precision(chosen, name)
