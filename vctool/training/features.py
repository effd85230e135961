"""Frames of clips, ready for training: what a frozen tower makes of them, computed once, or their pixels.

Shape letters: N clips, B rows of a batch, F frames, S side of a frame in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import vctool
from vctool.config import to_dict
from vctool.errors import VideoError
from vctool.models.backbone import Backbone
from vctool.models.video_colbert import VideoColBERT
from vctool.training.precision import Precision
from vctool.training.row_cache import CachedRows, RowCache
from vctool.video.clip import VideoInput
from vctool.video.sample import Sampling
from vctool.video.tar_member import stat_clip
from vctool.video.workers import DecodePool, DecodeResult

Report = Callable[[int, int], None]
"""Called with how many are done, of how many."""

Decode = Callable[[Sequence[VideoInput]], Iterable[DecodeResult]]
"""Decodes clips in order; a DecodePool unless a test brings its own."""


@dataclass(frozen=True)
class FrameData:
    """Frames of N clips: maps of a frozen tower, or pixels. failed: position in the list asked for → reason.

    The N rows are the clips asked for without the failed ones.
    """

    rows: CachedRows
    pixels: bool
    failed: dict[int, str]

    def take(self, clip_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Frames [B, F, ...] (float16 maps or uint8 pixels) and mask_BF of the real ones, which come first."""
        mask_BF = np.arange(self.rows.shape[0])[None] < self.rows.counts_N[clip_B][:, None]
        return torch.from_numpy(self.rows.take(clip_B)), torch.from_numpy(mask_BF)


def towers_frozen(backbone: Backbone, freeze: bool) -> bool:
    """Whether frame maps and text states stay the same during training and can be kept."""
    return freeze or bool(backbone.frozen_parameters())


@contextmanager
def decode_pool(model: VideoColBERT, workers: int, decoder: str, fps: float = 0) -> Iterator[Decode]:
    """Worker processes that decode clips as `model` wants its frames; fps: so many a second, spread evenly where that were too many."""
    count = Sampling(model.config.frames, "fps", fps) if fps else Sampling(model.config.frames)
    with DecodePool(workers, count=count, transform_config=model.backbone.preprocess, decoder=decoder) as pool:
        yield pool.run


def frame_cache(model: VideoColBERT, root: Path, *, frozen: bool, precision: Precision, decoder: str, fps: float = 0) -> RowCache:
    """Where frames of this model are kept: of a frozen tower its maps (float16), else pixels (uint8)."""
    backbone, frames, side = model.backbone, model.config.frames, model.backbone.preprocess.size
    settings = {"preprocess": to_dict(backbone.preprocess), "frames": frames, "decoder": decoder, "vctool": vctool.__version__}
    settings |= {"fps": fps} if fps else {}
    if not frozen:
        return RowCache(root, "frames", settings, (frames, side, side, 3), np.uint8)
    empty = np.zeros((1, side, side, 3), np.uint8)
    shape = (frames, *_maps(backbone, empty, precision).shape[1:])
    return RowCache(root, "maps", settings | {"tower": tower_fingerprint(backbone), "precision": precision.name}, shape, np.float16)


def clip_keys(clips: Sequence[VideoInput]) -> tuple[list[str], dict[int, str]]:
    """What each clip is cached under, and the reasons of those whose file cannot be seen (their key is empty).

    The key is the sha256 of path, size, time of change and piece: a file that is replaced is read again.
    """
    keys, failed = [], {}
    for i, clip in enumerate(clips):
        try:
            size, changed = stat_clip(clip.path)
        except OSError as problem:
            failed[i] = problem.strerror or "cannot be read"
            keys.append("")
            continue
        except VideoError as problem:
            failed[i] = problem.reason
            keys.append("")
            continue
        place = f"{clip.path.resolve()}\0{size}\0{changed}\0{clip.start}\0{clip.end}"
        keys.append(hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest())
    return keys, failed


def prepare_frames(
    model: VideoColBERT,
    store: RowCache,
    clips: Sequence[VideoInput],
    decode: Decode,
    *,
    frozen: bool,
    precision: Precision,
    report: Report | None = None,
) -> FrameData:
    """Frames of `clips` from the cache, computing what is missing. Clips that cannot be read are in `failed`.

    Raises VctoolError for a full disk; finished clips stay in the cache whatever happens.
    """
    keys, failed = clip_keys(clips)
    missing = [i for i in store.missing(keys) if i not in failed]
    if missing:
        done = len(clips) - len(missing)
        with store.adding(len(missing)) as writer:
            for i, result in zip(missing, decode([clips[i] for i in missing]), strict=True):
                row, problem = _row(model, store, result, frozen, precision)
                if row is None or result.frames_FHWC is None:
                    failed[i] = problem or "cannot be read"
                else:
                    writer.add(keys[i], row, len(result.frames_FHWC))
                done += 1
                if report is not None:
                    report(done, len(clips))
    reasons = {keys[i]: reason for i, reason in failed.items()}
    failed |= {i: reasons.get(key, "cannot be read") for i, key in enumerate(keys) if key not in store and i not in failed}
    return FrameData(store.rows([key for i, key in enumerate(keys) if i not in failed]), not frozen, failed)


def tower_fingerprint(backbone: Backbone) -> str:
    """sha256 of the pretrained weights behind frame maps: the packaged towers', or the whole backbone's."""
    frozen = {id(p) for p in backbone.frozen_parameters()}
    state = {n: p for n, p in backbone.named_parameters() if id(p) in frozen} or dict(backbone.state_dict())
    state = {n: p for n, p in state.items() if not n.startswith("adapters.")}  # they come after what is cached
    digest = hashlib.sha256(type(backbone).__name__.encode())
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _row(
    model: VideoColBERT, store: RowCache, result: DecodeResult, frozen: bool, precision: Precision
) -> tuple[NDArray[np.generic] | None, str | None]:
    frames = result.frames_FHWC
    if frames is None:
        return None, result.error
    # One clip at a time: its features do not depend on what else was in the queue, so an interrupted run stays exact.
    with np.errstate(over="ignore"):  # looked for right here
        values = _maps(model.backbone, frames, precision).numpy().astype(np.float16) if frozen else frames
    if frozen and not np.isfinite(values).all():
        return None, "its features do not fit into 16 bits"
    row = np.zeros(store.shape, store.dtype)
    row[: len(values)] = values
    return row, None


@torch.no_grad()
def _maps(backbone: Backbone, frames_FHWC: NDArray[np.uint8], precision: Precision) -> Tensor:
    training = backbone.training
    backbone.eval()
    try:
        with precision.autocast():
            return backbone.frame_map(torch.from_numpy(frames_FHWC).to(precision.device)).float().cpu()
    finally:
        backbone.train(training)
