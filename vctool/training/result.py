"""The end of a run: the best weights as a model directory, with the story of how they came about."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vctool.models.checkpoint import save_model
from vctool.models.video_colbert import VideoColBERT, count_parameters
from vctool.runtime.checksums import write_checksums
from vctool.training.checkpoint import Progress
from vctool.training.clips import ClipSet
from vctool.training.prepare import Prepared
from vctool.training.recipe import Recipe, recipe_dict

_PACKAGES = ("vctool", "torch", "numpy", "open_clip_torch", "timm", "safetensors", "tokenizers", "av")


def versions() -> dict[str, str]:
    """Installed versions of what takes part in training, and of Python."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run computes on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def portable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without the folders of the machine it ran on: paths keep only their last part."""

    def cut(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes = {f.name: cut(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return dataclasses.replace(value, **changes)
        return Path(value.name) if isinstance(value, Path) else value

    return recipe_dict(cut(recipe))


def describe_split(clips: ClipSet) -> dict[str, Any]:
    """Which clips: the manifest's name and hash, and how many."""
    return {"manifest": clips.path.name, "sha256": clips.sha256, "clips": len(clips), "captions": len(clips.texts)}


def story_of(prepared: Prepared, progress: Progress, machine: dict[str, Any]) -> dict[str, Any]:
    """What `training.json` holds of a run that has ended. machine: what it ran on, `hardware` and more."""
    model, loss = prepared.model, prepared.loss
    return {
        "schema": 1,
        "best": progress.best,
        "chosen_by": prepared.best,
        "seed": prepared.recipe.run.seed,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "sittings": progress.sittings,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "log_scale": loss.log_scale.detach().tolist(),
        "bias": loss.bias.detach().tolist(),
        "data": {"train": describe_split(prepared.train.clips), "validation": describe_split(prepared.validation.clips)},
        "recipe": portable(prepared.recipe),
        "history": progress.history,
        "versions": versions(),
        "hardware": machine,
    }


def write_result(folder: Path, model: VideoColBERT, story: dict[str, Any]) -> None:
    """Weights, config, tokenizer, `training.json`, a model card and checksums into the model directory `folder`.

    Raises OSError where it cannot be written.
    """
    try:
        save_model(model, folder)
    except SafetensorError as problem:  # its way to say that the disk is full
        raise OSError(str(problem)) from None
    text = json.dumps(story, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "training.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(model, story), encoding="utf-8")
    write_checksums(folder)


def _card(model: VideoColBERT, story: dict[str, Any]) -> str:
    config, best, sizes = model.config, story["best"], count_parameters(model)
    train = story["data"]["train"]
    lines = [
        f"# {config.name}",
        "",
        "A Video-ColBERT text-to-video retrieval model trained with vctool.",
        "",
        f"- backbone: {config.backbone.kind} {config.backbone.name}",
        f"- width {config.embed_dim}, {config.frames} frames, interaction {config.interaction}",
        f"- parameters: {sizes['backbone'] + sizes['temporal']:,}, of them {story['trained_parameters']:,} trained",
        f"- trained on {train['clips']:,} clips ({train['manifest']}), seed {story['seed']}",
        f"- weights of step {best['step']:,} of {story['steps']:,}, chosen by {' + '.join(story['chosen_by'])}",
        _chosen_on(story),
        "",
        "| validation | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in best["metrics"].items() if value is not None and _headline(name)),
        "",
        "`training.json` holds the recipe, the whole history, the versions and the hardware.",
        "",
    ]
    return "\n".join(lines)


def _chosen_on(story: dict[str, Any]) -> str:
    validation = story["data"]["validation"]
    if "own_clips" in story:
        return "- the numbers below are those of clips held out in turn, by models trained on the others with this recipe"
    if story["recipe"]["data"].get("select_on_test"):
        return f"- chosen on the {validation['clips']:,} TEST clips ({validation['manifest']}), the field's habit: not a held-out result"
    return f"- chosen on {validation['clips']:,} clips ({validation['manifest']}), so the numbers below flatter it a little"


def _headline(name: str) -> bool:
    return name.split("/")[1] in ("R@1", "R@5", "R@10", "MdR", "nDCG@10", "reversal_accuracy")
