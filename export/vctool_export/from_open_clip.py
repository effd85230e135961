"""A model directory from open_clip weights that were never trained for token interaction."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vctool.config import BackboneConfig, ModelConfig, QueryConfig, TemporalConfig
from vctool.errors import InputError, ModelError
from vctool.models.checkpoint import save_model
from vctool.models.open_clip_backbone import OpenClipBackbone
from vctool.models.video_colbert import VideoColBERT
from vctool.zoo.card import CARD_FILE, Origin, model_card
from vctool.zoo.table import ZooModel
from vctool_export.exporting import export_graphs

_COPIES = 2.1  # of the weights in a finished directory: model.safetensors and the graphs; a little for the rest


def fetch_open_clip(
    architecture: str,
    checkpoint: Path,
    directory: Path,
    *,
    frames: int,
    progress: Callable[[str], None],
    tokenizer: Path | None = None,
    tag: str | None = None,
    origin: Origin | None = None,
    model: ZooModel | None = None,
) -> None:
    """Write the model directory of `architecture` with the weights of a local file, graphs and card included, whole or not at all.

    tokenizer: the `tokenizer.json` of an architecture whose vocabulary open_clip does not carry (SigLIP); tag: open_clip's name of
    the weights, where it is known, which decides the preprocessing; origin, model: what the card says. Query policy `pooled`; the
    temporal encoder is the mean of frames, so `f` scores the best frame, `v` the mean, `fv` both. Raises ModelError where a file is
    missing or not of that architecture, InputError where `directory` exists or cannot be written.
    """
    if directory.exists():
        raise InputError(f"{directory} exists already", "choose another folder, or remove it first")
    tokenizer = check_tokenizer(architecture, tokenizer)
    backbone = OpenClipBackbone(architecture, checkpoint=checkpoint, tag=tag)
    backbone.tokenizer_file = tokenizer
    config = ModelConfig(
        name=model.name if model else architecture,
        embed_dim=backbone.embed_dim,
        frames=frames,
        backbone=BackboneConfig("open_clip", architecture),
        query=QueryConfig(policy="pooled", expand="off", max_length=backbone.context_length),
        temporal=TemporalConfig(kind="mean", layers=0, expansion_tokens=0),
    )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _require_room(directory.parent, backbone)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            folder = Path(scratch) / "model"
            save_model(VideoColBERT(config, backbone), folder)
            source = origin or local_origin(checkpoint, tokenizer)
            (folder / CARD_FILE).write_text(model_card(config, backbone.preprocess, source, model, tag), encoding="utf-8")
            del backbone
            export_graphs(folder, progress=progress)
            folder.rename(directory)
    except OSError as problem:
        raise InputError(f"{directory} cannot be written: {problem.strerror or problem}", "choose another folder") from None


def local_origin(checkpoint: Path, tokenizer: Path | None) -> Origin:
    """What the card says of files that were given by hand. Their names, not their folders: these are of one machine."""
    from vctool.zoo.hub import sum_of

    other = f"the file `{tokenizer.name}`, SHA-256 `{sum_of(tokenizer)}`" if tokenizer else None
    return Origin(f"the file `{checkpoint.name}`", sum_of(checkpoint), checkpoint.stat().st_size, other)


def check_tokenizer(architecture: str, tokenizer: Path | None) -> Path | None:
    """`tokenizer`, or None for an architecture whose vocabulary open_clip carries (CLIP's).

    Raises ModelError, before anything large is read, where the file is needed and not there.
    """
    import open_clip

    wanted = (open_clip.get_model_config(architecture) or {}).get("text_cfg", {}).get("hf_tokenizer_name")
    if wanted is None:
        return None
    if tokenizer is None:
        raise ModelError(
            f"{architecture} needs its vocabulary, tokenizer.json of {wanted}, and the file is missing",
            "put it beside the checkpoint, or name it with --tokenizer FILE",
        )
    if not tokenizer.is_file():
        raise ModelError(f"{tokenizer}: no such tokenizer file", f"{architecture} needs tokenizer.json of {wanted}")
    return tokenizer


def _require_room(folder: Path, backbone: OpenClipBackbone) -> None:
    needed = int(_COPIES * sum(p.numel() * p.element_size() for p in backbone.parameters()))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"the model directory needs {needed / 1e6:,.0f} MB, the disk of {folder} has {free / 1e6:,.0f} MB", "choose another folder"
        )
