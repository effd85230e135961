"""Small clips and stores made in code, for the store's tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vctool.store import ClipTokens, StoreDtype, StoreWriter
from vctool.store.shards import MANIFEST, describe_shard, folder_manifest

DIM = 8
MODEL: dict[str, Any] = {"model": {"name": "tiny", "sha256": "ab" * 32}, "frames": {"count": 3}}


def unit(rows: int, width: int = DIM, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def make_clip(name: str, seed: int = 0, frames: int = 3, tokens: int = 5, path: str = "", meta: dict[str, Any] | None = None) -> ClipTokens:
    times = np.concatenate([np.arange(min(frames, tokens)), np.full(max(tokens - frames, 0), np.nan)]).astype(np.float32)
    frame, video = unit(frames, seed=2 * seed), unit(tokens, seed=2 * seed + 1)
    return ClipTokens(name, path, frame, np.arange(frames, dtype=np.float32), video, times, meta or {"duration": seed})


def write_store(path: Path, clips: Iterable[ClipTokens], dtype: StoreDtype = "float16", manifest: dict[str, Any] | None = None) -> Path:
    with StoreWriter(path, manifest=MODEL if manifest is None else manifest, dtype=dtype) as writer:
        for clip in clips:
            writer.add(clip)
        writer.commit()
    return path


def write_folder(folder: Path, shards: Iterable[Iterable[ClipTokens]], dtype: StoreDtype = "float16") -> Path:
    """A folder store written by hand, shard by shard."""
    folder.mkdir()
    paths = [write_store(folder / f"shard-{number:06d}.npz", clips, dtype) for number, clips in enumerate(shards)]
    common = MODEL | {"dim": DIM, "dtype": dtype}
    (folder / MANIFEST).write_bytes(folder_manifest(common, [describe_shard(path) for path in paths], 1))
    return folder
