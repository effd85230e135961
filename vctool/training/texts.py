"""Captions, tokenized once, and what a frozen text tower makes of them.

Shape letters: N distinct captions, B rows of a batch, L text tokens, W width of a text state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import vctool
from vctool.errors import InputError
from vctool.models.video_colbert import VideoColBERT, counted_tokens
from vctool.preprocessing.tokenizer import Tokenizer
from vctool.training.features import Report, tower_fingerprint
from vctool.training.precision import Precision
from vctool.training.row_cache import CachedRows, RowCache

_TEXTS_AT_ONCE = 64


class TextInput(NamedTuple):
    """Captions of a batch: state_BLW float16 of a frozen text tower (None: it runs in the loop), ids and mask int64."""

    state_BLW: Tensor | None
    input_ids_BL: Tensor
    attention_mask_BL: Tensor


@dataclass(frozen=True)
class TextData:
    """All distinct captions of a run. truncated: how many did not fit into L tokens."""

    input_ids_NL: NDArray[np.int32]
    attention_mask_NL: NDArray[np.bool_]
    states: CachedRows | None
    truncated: int

    def take(self, text_B: NDArray[np.int64]) -> TextInput:
        """The captions with these numbers."""
        ids = torch.from_numpy(self.input_ids_NL[text_B].astype(np.int64))
        mask = torch.from_numpy(self.attention_mask_NL[text_B].astype(np.int64))
        return TextInput(None if self.states is None else torch.from_numpy(self.states.take(text_B)), ids, mask)


def prepare_texts(
    model: VideoColBERT,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    root: Path,
    *,
    frozen: bool,
    precision: Precision,
    report: Report | None = None,
) -> TextData:
    """Tokenize `texts`; with a frozen tower also its states, from the cache folder or computed now.

    Raises InputError for a caption of which no token counts: its score would be a mean of nothing.
    """
    tokens = tokenizer.encode(texts)
    ids_NL, mask_NL = tokens.input_ids_BL.astype(np.int32), tokens.attention_mask_BL.astype(np.bool_)
    empty = np.flatnonzero(~counted_tokens(model.config.query, torch.from_numpy(tokens.attention_mask_BL)).any(dim=1).numpy())
    if len(empty) and model.config.query.policy == "tokens":
        raise InputError(
            f"the caption {texts[empty[0]]!r} has no token that counts", 'take it out of the manifest, or set model.query.counted = "all"'
        )
    states = _states(model, ids_NL, mask_NL, root, precision, report) if frozen else None
    return TextData(ids_NL, mask_NL, states, sum(tokens.truncated))


def _states(
    model: VideoColBERT, ids_NL: NDArray[np.int32], mask_NL: NDArray[np.bool_], root: Path, precision: Precision, report: Report | None
) -> CachedRows:
    length = ids_NL.shape[1]
    width = _run(model, ids_NL[:1], mask_NL[:1], precision).shape[2]
    settings = {"tower": tower_fingerprint(model.backbone), "precision": precision.name, "vctool": vctool.__version__}
    store = RowCache(root, "texts", settings, (length, width), np.float16)
    keys = [hashlib.sha256(ids.tobytes() + mask.tobytes()).hexdigest() for ids, mask in zip(ids_NL, mask_NL, strict=True)]
    missing = np.array(store.missing(keys), dtype=np.int64)
    if len(missing):
        missing = missing[np.argsort(mask_NL[missing].sum(axis=1), kind="stable")]  # alike lengths together: short batches are quick
        with store.adding(len(missing)) as writer:
            for start in range(0, len(missing), _TEXTS_AT_ONCE):
                chosen = missing[start : start + _TEXTS_AT_ONCE]
                longest = int(mask_NL[chosen].sum(axis=1).max()) if not model.backbone.pad_states else length
                state_BLW = _run(model, ids_NL[chosen, :longest], mask_NL[chosen, :longest], precision)
                for i, state_LW in zip(chosen, state_BLW, strict=True):
                    row = np.zeros(store.shape, np.float16)
                    row[:longest] = state_LW
                    writer.add(keys[i], row, int(mask_NL[i].sum()))
                if report is not None:
                    report(len(keys) - len(missing) + start + len(chosen), len(keys))
    return store.rows(keys)


@torch.no_grad()
def _run(model: VideoColBERT, ids_BL: NDArray[np.int32], mask_BL: NDArray[np.bool_], precision: Precision) -> NDArray[np.float16]:
    training = model.training
    model.eval()
    try:
        ids, mask = (torch.from_numpy(a.astype(np.int64)).to(precision.device) for a in (ids_BL, mask_BL))
        with precision.autocast():
            return model.backbone.text_states(ids, mask).float().cpu().numpy().astype(np.float16)
    finally:
        model.train(training)
