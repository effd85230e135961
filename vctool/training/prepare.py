"""From a recipe to everything a run needs: model, clips, features, batches; and what it will cost, without running it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vctool.errors import InputError, Interrupted, UsageProblem
from vctool.models.checkpoint import build_model, load_model
from vctool.models.losses import LossConfig, RetrievalLoss
from vctool.models.open_clip_backbone import OpenClipBackbone
from vctool.models.video_colbert import VideoColBERT
from vctool.preprocessing.tokenizer import Tokenizer
from vctool.training.batches import BatchPlan
from vctool.training.checkpoint import seed_everything
from vctool.training.clips import ClipSet, read_clips, refuse_overlap
from vctool.training.display import Display, Update
from vctool.training.features import FrameData, Report, decode_pool, frame_cache, prepare_frames, towers_frozen
from vctool.training.optimizer import freeze_pretrained
from vctool.training.precision import Precision, choose_precision
from vctool.training.recipe import Recipe
from vctool.training.stop import StopRequest
from vctool.training.texts import TextData, prepare_texts
from vctool.training.validation import Queries, choose_queries, parse_best

_STATISTICS_CLIPS = 300


@dataclass(frozen=True)
class Split:
    """A split, ready: rows of `frames` belong to `clips.clips`, in order."""

    clips: ClipSet
    frames: FrameData
    texts: TextData


@dataclass(frozen=True)
class Prepared:
    """Everything but the state of a run. best: names of the metrics whose sum is to be high."""

    recipe: Recipe
    model: VideoColBERT
    loss: RetrievalLoss
    precision: Precision
    train: Split
    plan: BatchPlan
    validation: Split
    queries: Queries
    best: list[str]

    @property
    def epoch_steps(self) -> int:
        return max(1, self.plan.batches // self.recipe.optim.accumulate)

    @property
    def total_steps(self) -> int:
        return self.recipe.optim.steps or self.recipe.optim.epochs * self.epoch_steps


def read_splits(recipe: Recipe) -> tuple[ClipSet, ClipSet]:
    """Training and validation clips; refuses splits that overlap."""
    train = read_clips(recipe.data.train, recipe.data.limit)
    validation = read_clips(recipe.data.validation, recipe.data.validation_limit)
    refuse_overlap(train, validation, recipe.data.test)
    return train, validation


def make_model(recipe: Recipe, device: torch.device) -> tuple[VideoColBERT, RetrievalLoss]:
    """The model with fresh or given weights, what is frozen frozen, on its device; seeded."""
    seed_everything(recipe.run.seed)
    if recipe.init.model is not None:
        model = load_model(recipe.init.model)
        if replace(model.config, versions={}, name="") != replace(recipe.model, versions={}, name=""):
            raise UsageProblem(f"[model] is not the model in {recipe.init.model}", f"copy the values of its config.json: {model.config}")
        model = _renamed(model, recipe)
    else:
        model = build_model(recipe.model, checkpoint=recipe.init.checkpoint)
    tokenizer = recipe.init.tokenizer or (recipe.init.model / "tokenizer.json" if recipe.init.model is not None else None)
    if tokenizer is not None and isinstance(model.backbone, OpenClipBackbone):
        model.backbone.tokenizer_file = tokenizer
    freeze_pretrained(model, recipe.optim.freeze_backbone)
    model.score_kernel = recipe.optim.score_kernel
    loss = RetrievalLoss(_loss_config(recipe, model))
    return model.to(device).train(), loss.to(device)


def prepare(recipe: Recipe, folder: Path, display: Display, stop: StopRequest) -> Prepared:
    """Build the model and bring the clips of both splits into the cache. Raises Interrupted when asked to stop."""
    precision = choose_precision(recipe.optim.precision)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    train_set, validation_set = read_splits(recipe)
    model, loss = make_model(recipe, precision.device)
    best = parse_best(recipe.run.best, recipe.model.interaction, bool(len(choose_queries(validation_set, 1).pair_P)))
    frozen = towers_frozen(model.backbone, recipe.optim.freeze_backbone)
    cache = recipe.data.cache or folder / "cache"
    tokenizer = _tokenizer(model, folder / "model")

    def reporting(update: Update) -> Report:
        def report(done: int, _: int) -> None:
            update(done)
            if stop.asked:
                raise Interrupted("stopped while preparing features; those that are done are kept", "run the same command again to go on")

        return report

    store = frame_cache(model, cache, frozen=frozen, precision=precision, decoder=recipe.data.decoder)
    splits = []
    with decode_pool(model, recipe.data.workers, recipe.data.decoder) as decode:
        for name, clips in (("train", train_set), ("validation", validation_set)):
            inputs = [clip.input for clip in clips.clips]
            with display.bar(f"{name} clips", len(inputs), "clips") as update:
                frames = prepare_frames(model, store, inputs, decode, frozen=frozen, precision=precision, report=reporting(update))
            splits.append((_usable(clips, frames, recipe.data.strict, display), frames))
    queries = choose_queries(splits[1][0], recipe.data.validation_captions)
    texts = []
    for name, wanted in (("train", splits[0][0].texts), ("validation", queries.texts)):
        with display.bar(f"{name} captions", len(wanted), "captions") as update:
            data = prepare_texts(model, tokenizer, wanted, cache, frozen=frozen, precision=precision, report=reporting(update))
        if data.truncated:
            display.say(
                f"{data.truncated} of {len(wanted)} {name} captions are longer than {recipe.model.query.max_length} tokens and are cut"
            )
        texts.append(data)
    train, validation = (Split(clips, frames, text) for (clips, frames), text in zip(splits, texts, strict=True))
    plan = make_plan(recipe, train.clips)
    if recipe.init.model is None:
        _standardise(model, train.frames, recipe.run.seed)
    return Prepared(recipe, model, loss, precision, train, plan, validation, queries, best)


def prepare_held_out(
    recipe: Recipe, model: VideoColBERT, manifest: Path, captions: int, folder: Path, display: Display
) -> tuple[Split, Queries, Precision]:
    """The clips of `manifest` and the first `captions` captions of each (0: all) as queries, ready for a model trained by `recipe`.

    folder: where the features are kept if the recipe names no cache. Raises InputError where a clip cannot be read: results
    on fewer clips than the manifest's are not those of the manifest.
    """
    precision = choose_precision(recipe.optim.precision)
    model.to(precision.device)
    clips = read_clips(manifest)
    frozen = towers_frozen(model.backbone, recipe.optim.freeze_backbone)
    cache = recipe.data.cache or folder / "cache"
    store = frame_cache(model, cache, frozen=frozen, precision=precision, decoder=recipe.data.decoder)
    inputs = [clip.input for clip in clips.clips]
    with decode_pool(model, recipe.data.workers, recipe.data.decoder) as decode, display.bar("test clips", len(inputs), "clips") as update:
        frames = prepare_frames(model, store, inputs, decode, frozen=frozen, precision=precision, report=lambda done, _: update(done))
    clips = _usable(clips, frames, True, display)
    queries = choose_queries(clips, captions)
    texts = prepare_texts(model, _tokenizer(model, folder), queries.texts, cache, frozen=frozen, precision=precision)
    return Split(clips, frames, texts), queries, precision


def make_plan(recipe: Recipe, train: ClipSet) -> BatchPlan:
    """The batches of a run. Raises UsageProblem where an epoch is shorter than one optimizer step."""
    data, optim = recipe.data, recipe.optim
    plan = BatchPlan(train.clips, size=optim.batch, seed=recipe.run.seed, reverse=data.reverse, caption_choice=data.caption_choice)
    if plan.batches < optim.accumulate:
        raise UsageProblem(
            f"an epoch has {plan.batches} batches, fewer than optim.accumulate = {optim.accumulate}", "lower one of batch and accumulate"
        )
    return plan


def _loss_config(recipe: Recipe, model: VideoColBERT) -> LossConfig:
    start = getattr(model.backbone, "loss_start", None)
    if recipe.init.checkpoint is None or not recipe.init.loss_from_checkpoint or start is None:
        return recipe.loss
    return replace(recipe.loss, log_scale=start[0], bias=start[1])


def _renamed(model: VideoColBERT, recipe: Recipe) -> VideoColBERT:
    model.config = recipe.model
    return model


def _tokenizer(model: VideoColBERT, folder: Path) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    model.backbone.write_tokenizer(folder, model.config.query.max_length)
    return Tokenizer.load(folder)


def _usable(clips: ClipSet, frames: FrameData, strict: bool, display: Display) -> ClipSet:
    if not frames.failed:
        return clips
    lines = [f"{clips.clips[i].input.path}: {reason}" for i, reason in sorted(frames.failed.items())]
    if len(lines) == len(clips):
        raise InputError(
            f"no clip of {clips.path} can be read; the first: {lines[0]}", "check the paths: they are relative to the manifest"
        )
    if strict:
        raise InputError(
            f"{len(lines)} clips of {clips.path} cannot be read; the first: {lines[0]}", "take them out, or set data.strict = false"
        )
    display.say(f"{len(lines)} of {len(clips)} clips of {clips.path.name} cannot be read and are left out:")
    for line in lines[:20]:
        display.say(f"  {line}")
    if len(lines) > 20:
        display.say(f"  and {len(lines) - 20} more")
    return clips.without(set(frames.failed))


def _standardise(model: VideoColBERT, frames: FrameData, seed: int) -> None:
    """Heads over frozen maps want the maps' mean and deviation, from a sample of the training clips."""
    take_statistics = getattr(model.backbone, "set_map_statistics", None)
    if take_statistics is None:
        return
    count = len(frames.rows)
    chosen = np.sort(np.random.default_rng([seed, 0x5EED]).permutation(count)[:_STATISTICS_CLIPS])
    maps, mask_NF = frames.take(chosen)
    take_statistics(maps[mask_NF].float())
