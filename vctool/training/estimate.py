"""What a run would do and cost, without training (`vctool train --dry-run`)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from vctool.models.video_colbert import count_parameters
from vctool.training.blocks import recompute_blocks
from vctool.training.features import clip_keys, frame_cache, towers_frozen
from vctool.training.optimizer import trained_parameters
from vctool.training.precision import choose_precision
from vctool.training.prepare import make_model, make_plan
from vctool.training.recipe import Recipe
from vctool.training.splits import read_splits
from vctool.training.trial import try_step
from vctool.training.validation import choose_queries, parse_best


def estimate(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Sizes, steps, and how much has to be computed first, for the run in `folder`. Raises what the run itself would raise.

    Keys: parameters (backbone, temporal, frozen, trained), device, precision, train, validation, batch, accumulate,
    steps_per_epoch, steps, cache (what, missing_clips, unreadable_clips, bytes), and what `try_step` finds: groups, bytes,
    rows_at_once, step; hours is steps times a step's seconds, without validation and features. Writes nothing.
    """
    precision = choose_precision(recipe.optim.precision)
    train, validation = read_splits(recipe)
    model, loss = make_model(recipe, precision.device)
    if recipe.optim.recompute:
        recompute_blocks(model)
    plan = make_plan(recipe, train)
    frozen = towers_frozen(model.backbone, recipe.optim.freeze_backbone)
    paired = bool(len(choose_queries(validation, 1).pair_P))
    clips = [clip.input for clip in (*train.clips, *validation.clips)]
    keys, failed = clip_keys(clips)
    cache = recipe.data.cache or folder / "cache"
    with tempfile.TemporaryDirectory() as nowhere:
        root = cache if cache.exists() else Path(nowhere)
        store = frame_cache(model, root, frozen=frozen, precision=precision, decoder=recipe.data.decoder, fps=recipe.data.fps)
        missing = [i for i in store.missing(keys) if i not in failed]
        row = store.shape
    epoch_steps = max(1, plan.batches // recipe.optim.accumulate)
    steps = recipe.optim.steps or recipe.optim.epochs * epoch_steps
    tried = try_step(model, loss, precision, recipe.optim, row)
    return {
        "schema": 1,
        "parameters": {**count_parameters(model), "trained": sum(p.numel() for p in trained_parameters(model))},
        "device": str(precision.device),
        "precision": precision.name,
        "train": {"clips": len(train), "rows_per_epoch": plan.rows, "captions": len(train.texts), "without_caption": train.silent},
        "validation": {"clips": len(validation), "best": parse_best(recipe.run.best, recipe.model.interaction, paired)},
        "batch": recipe.optim.batch,
        "accumulate": recipe.optim.accumulate,
        "steps_per_epoch": epoch_steps,
        "steps": steps,
        **tried,
        "hours": steps * tried["step"]["seconds"] / 3600,
        "cache": {
            "what": "frame maps" if frozen else "pixels",
            "missing_clips": len(missing),
            "unreadable_clips": len(failed),
            "bytes": len(missing) * store.row_bytes,
        },
    }
