"""A model directory from open_clip weights that were never trained for token interaction."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig
from vctool.errors import InputError
from vctool.models.checkpoint import save_model
from vctool.models.open_clip_backbone import OpenClipBackbone
from vctool.models.video_colbert import VideoColBERT
from vctool_export.exporting import export_graphs


def fetch_open_clip(architecture: str, checkpoint: Path, directory: Path, *, frames: int, progress: Callable[[str], None]) -> None:
    """Write the model directory of `architecture` with the weights of a local file, graphs included, whole or not at all.

    Query policy `pooled`; the temporal encoder is the mean of frames, so `f` scores the best frame, `v` the mean, `fv` both.
    Raises ModelError where the file is not of that architecture, InputError where `directory` exists or cannot be written.
    """
    if directory.exists():
        raise InputError(f"{directory} exists already", "choose another folder, or remove it first")
    backbone = OpenClipBackbone(architecture, checkpoint=checkpoint)
    config = ModelConfig(
        name=architecture,
        embed_dim=backbone.embed_dim,
        frames=frames,
        backbone=BackboneConfig("open_clip", architecture),
        query=QueryConfig(policy="pooled", expand="off", max_length=backbone.context_length),
        temporal=TemporalConfig(kind="mean", layers=0, expansion_tokens=0),
    )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            folder = Path(scratch) / "model"
            save_model(VideoColBERT(config, backbone), folder)
            export_graphs(folder, progress=progress)
            folder.rename(directory)
    except OSError as problem:
        raise InputError(f"{directory} cannot be written: {problem.strerror or problem}", "choose another folder") from None
