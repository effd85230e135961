"""Encoding a part of a batch: rows in, tokens out, under a seed of their own so that a part can be encoded twice alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vctool.models.video_colbert import QueryTokens, VideoColBERT, VideoTokens
from vctool.training.batches import Batch
from vctool.training.forward import encode_clips, encode_frames, encode_texts, present
from vctool.training.precision import Precision
from vctool.training.texts import TextInput


class RowInputs(NamedTuple):
    """Some rows of a batch, on the CPU. The frames are those of their U different clips, forwards; `row_B` finds them."""

    frames: Tensor
    frame_mask_UF: Tensor
    row_B: Tensor
    reversed_B: Tensor
    text: TextInput


class BatchInputs(NamedTuple):
    """A whole batch, and the arrays of the rows this process owns, in parts that are encoded at once.

    counts: rows of each process. A process without a row has one part all the same, whose tokens nobody uses.
    """

    batch: Batch
    counts: list[int]
    own: int
    parts: list[RowInputs]


class Encoder(nn.Module):
    """The towers and the temporal encoder as one module with one forward pass, which is what DistributedDataParallel wants.

    A branch that the model does not score gives tokens without a gradient: its parameters then count as unused.
    """

    def __init__(self, model: VideoColBERT, precision: Precision, *, pixels: bool) -> None:
        super().__init__()
        self.backbone, self.temporal = model.backbone, model.temporal
        self.precision, self.pixels = precision, pixels
        self._model = (model,)  # in a tuple, or its parameters would be listed twice

    def forward(self, part: RowInputs) -> tuple[QueryTokens, VideoTokens]:
        """Query tokens and both token sets of the rows, in the precision's wide format."""
        (model,) = self._model
        feature_UFD = encode_frames(model, part.frames, part.frame_mask_UF, pixels=self.pixels, precision=self.precision)
        clips = encode_clips(model, *present(feature_UFD, part.frame_mask_UF, part.row_B, part.reversed_B), self.precision)
        if "f" not in model.config.interaction:
            clips = clips._replace(frame_CFD=clips.frame_CFD.detach())
        if "v" not in model.config.interaction:
            clips = clips._replace(video_CVD=clips.video_CVD.detach())
        return encode_texts(model, part.text, self.precision), clips


def first_row(part: RowInputs) -> RowInputs:
    """The first row alone."""
    text = TextInput(*(None if side is None else side[:1] for side in part.text))  # type: ignore[arg-type]
    first_B = part.row_B[:1]
    return RowInputs(part.frames[first_B], part.frame_mask_UF[first_B], torch.zeros_like(first_B), part.reversed_B[:1], text)


def seed_part(*place: int) -> None:
    """Seed torch by the place in a run (seed, step, batch of the step, process, part): what dropout draws depends on nothing else."""
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))


def joined_tokens(parts: Sequence[tuple[QueryTokens, VideoTokens]], own: int) -> tuple[QueryTokens, VideoTokens]:
    """Tokens of all parts, end to end; of them the first `own` rows."""
    queries = QueryTokens(*(torch.cat(column)[:own] for column in zip(*(q for q, _ in parts), strict=True)))
    clips = VideoTokens(*(torch.cat(column)[:own] for column in zip(*(c for _, c in parts), strict=True)))
    return queries, clips
