"""A probe set: real clips with sentences, small enough to encode at every verification. No torch.

Shape letters: Q queries, L padded text length, C clips, F frames, S side of the picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.config import PreprocessConfig
from vctool.errors import InputError
from vctool.preprocessing.tokenizer import Tokenizer
from vctool.video.files import VideoInput, find_videos
from vctool.video.workers import DecodePool

FRAMES = 4
"""Frames of a clip. Graphs are compared, not models: more frames would cost minutes and show nothing new."""
QUERIES_A_CLIP = 2

SENTENCES = (
    ("empty", ""),
    ("one word", "dog"),
    ("typical", "a dog catching a frisbee"),
    ("a sentence", "in the evening two people walk slowly along the beach while a small dog runs ahead of them into the waves"),
    ("longest", " ".join(["a red car, a blue bird and 12 green apples on the old wooden table near the window"] * 8)),
    ("Chinese", "一只狗在草地上接住飞盘"),
    ("Cyrillic", "собака ловит фрисби на траве"),
    ("Arabic", "كلب يمسك القرص الطائر"),
    ("emoji and marks", "WOW!!! a dog 🐕 & a frisbee 🥏 — isn't it &amp; great?"),
)
"""Real sentences and the ones that break things. `longest` is cut to what the model reads."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Clips and sentences, ready for the graphs.

    clips: uint8 `[F, S, S, 3]` of each clip. right_Q: the clip that each query describes. input_ids_QL, attention_mask_QL:
    int64. facts: `name`, `pixels_sha256`, `texts_sha256`, counts: what the stored scores are checked against.
    """

    clip_ids: tuple[str, ...]
    clips: tuple[NDArray[np.uint8], ...]
    queries: tuple[str, ...]
    right_Q: NDArray[np.int64]
    input_ids_QL: NDArray[np.int64]
    attention_mask_QL: NDArray[np.int64]
    facts: dict[str, Any]


def shipped_probe() -> Path:
    """The manifest of the clips that come with the package."""
    return Path(str(resources.files("vctool.demo").joinpath("clips", "captions.jsonl")))


def read_probe(
    tokenizer: Tokenizer,
    preprocess: PreprocessConfig,
    inputs: Sequence[Path] | None = None,
    *,
    frames: int = FRAMES,
    limit: int | None = None,
) -> Probe:
    """Decode and tokenize a probe set: the user's clips (files, folders, a manifest), or the shipped ones.

    limit: at most so many clips. Without captions the file names serve as sentences: retrieval is compared with PyTorch's,
    so a sentence need not be true. Raises InputError if no clip can be read.
    """
    found = find_videos([str(path) for path in inputs] if inputs else [str(shipped_probe())])[:limit]
    with DecodePool(1, count=frames, transform_config=preprocess) as pool:
        results = [result for result in pool.run(found) if result.frames_FHWC is not None]
    if not results:
        raise InputError("no clip of the probe set can be read", "check the files that --probe names")
    clips = tuple(np.ascontiguousarray(result.frames_FHWC) for result in results if result.frames_FHWC is not None)
    queries, right = [], []
    for number, result in enumerate(results):
        for text in _sentences(result.input):
            queries.append(text)
            right.append(number)
    tokens = tokenizer.encode(queries)
    ids = tuple(result.input.id for result in results)
    facts = {
        "name": "shipped" if inputs is None else ", ".join(Path(path).name for path in inputs),
        "clips": len(clips),
        "skipped": len(found) - len(clips),
        "queries": len(queries),
        "frames": frames,
        "pixels_sha256": _digest(clips),
        "texts_sha256": hashlib.sha256("\0".join(queries).encode("utf-8", "replace")).hexdigest(),
    }
    return Probe(ids, clips, tuple(queries), np.asarray(right), tokens.input_ids_BL, tokens.attention_mask_BL, facts)


def same_probe(stored: dict[str, Any], probe: Probe) -> str:
    """ "" if stored scores are about exactly this probe set, else what differs."""
    if stored.get("texts_sha256") != probe.facts["texts_sha256"]:
        return "its sentences are not those that PyTorch was asked at export"
    if stored.get("pixels_sha256") != probe.facts["pixels_sha256"]:
        return "its frames do not decode to the pixels that PyTorch saw at export (another FFmpeg or Pillow?)"
    return ""


def _sentences(clip: VideoInput) -> list[str]:
    return [text for text in clip.captions if text.strip()][:QUERIES_A_CLIP] or [Path(clip.path).stem.replace("-", " ").replace("_", " ")]


def _digest(clips: Sequence[NDArray[np.uint8]]) -> str:
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(str(clip.shape).encode())
        digest.update(clip.tobytes())
    return digest.hexdigest()
