"""From a recipe to everything a run needs: model, clips, features, batches; and what it will cost, without running it."""

from __future__ import annotations

from collections.abc import Sequence
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
from vctool.training.advice import caption_lines, length_lines, zero_shot_mrr
from vctool.training.batches import BatchPlan
from vctool.training.checkpoint import seed_everything
from vctool.training.clips import ClipSet, read_clips
from vctool.training.display import Display, Update
from vctool.training.features import FrameData, Report, decode_pool, frame_cache, prepare_frames, towers_frozen
from vctool.training.optimizer import freeze_pretrained
from vctool.training.precision import Precision, choose_precision
from vctool.training.recipe import Recipe
from vctool.training.splits import read_splits
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
    """Everything but the state of a run. best: names of the metrics whose sum is to be high.

    start_mrr: what the pretrained model finds among the validation clips before any training; None where nothing is pretrained.
    """

    recipe: Recipe
    model: VideoColBERT
    loss: RetrievalLoss
    precision: Precision
    train: Split
    plan: BatchPlan
    validation: Split
    queries: Queries
    best: list[str]
    start_mrr: float | None = None

    @property
    def epoch_steps(self) -> int:
        return max(1, self.plan.batches // self.recipe.optim.accumulate)

    @property
    def total_steps(self) -> int:
        return self.recipe.optim.steps or self.recipe.optim.epochs * self.epoch_steps


def make_model(recipe: Recipe, device: torch.device) -> tuple[VideoColBERT, RetrievalLoss]:
    """The model with fresh or given weights, what is frozen frozen, on its device; seeded."""
    seed_everything(recipe.run.seed)
    if recipe.init.model is not None:
        model = _adapted(load_model(recipe.init.model), recipe)
    elif recipe.init.checkpoint is not None and recipe.init.checkpoint.is_dir():
        model = _on_towers(recipe, recipe.init.checkpoint)
    else:
        model = build_model(recipe.model, checkpoint=recipe.init.checkpoint)
    folder = recipe.init.model or (recipe.init.checkpoint if recipe.init.checkpoint and recipe.init.checkpoint.is_dir() else None)
    tokenizer = recipe.init.tokenizer or (folder / "tokenizer.json" if folder is not None else None)
    if tokenizer is not None and isinstance(model.backbone, OpenClipBackbone):
        model.backbone.tokenizer_file = tokenizer
    freeze_pretrained(model, recipe.optim.freeze_backbone)
    model.score_kernel = recipe.optim.score_kernel
    loss = RetrievalLoss(_loss_config(recipe, model))
    return model.to(device).train(), loss.to(device)


class Bench:
    """The model of a recipe, with the cache and the tokenizer that make clips and captions ready for it."""

    def __init__(self, recipe: Recipe, folder: Path, display: Display, stop: StopRequest) -> None:
        self.recipe, self.display, self.stop = recipe, display, stop
        self.precision = choose_precision(recipe.optim.precision)
        if recipe.run.threads:
            torch.set_num_threads(recipe.run.threads)
        self.model, self.loss = make_model(recipe, self.precision.device)
        self.frozen = towers_frozen(self.model.backbone, recipe.optim.freeze_backbone)
        self.cache = recipe.data.cache or folder / "cache"
        self.tokenizer = _tokenizer(self.model, folder / "model")
        self.store = frame_cache(
            self.model, self.cache, frozen=self.frozen, precision=self.precision, decoder=recipe.data.decoder, fps=recipe.data.fps
        )

    def frames(self, name: str, clips: ClipSet) -> tuple[ClipSet, FrameData]:
        """The clips that can be read, and their frames. Raises InputError where none can, or `data.strict` wants all."""
        inputs, data = [clip.input for clip in clips.clips], self.recipe.data
        with (
            decode_pool(self.model, data.workers, data.decoder, data.fps) as decode,
            self.display.bar(f"{name} clips", len(inputs), "clips") as update,
        ):
            frames = prepare_frames(
                self.model, self.store, inputs, decode, frozen=self.frozen, precision=self.precision, report=self._reporting(update)
            )
        if clips.merged:
            self.display.say(
                f"{clips.merged} lines of {clips.path.name} name a clip that an earlier line names: their captions were put together"
            )
        return _usable(clips, frames, data.strict, self.display), frames

    def texts(self, name: str, wanted: Sequence[str]) -> TextData:
        """Captions, tokenized, and what a frozen tower makes of them; says how many are cut."""
        with self.display.bar(f"{name} captions", len(wanted), "captions") as update:
            data = prepare_texts(
                self.model,
                self.tokenizer,
                wanted,
                self.cache,
                frozen=self.frozen,
                precision=self.precision,
                report=self._reporting(update),
            )
        for line in length_lines(name, data, self.model):
            self.display.say(line)
        return data

    def prepared(self, train: Split, validation: Split, queries: Queries) -> Prepared:
        """What a Trainer wants, of splits that are ready."""
        recipe = self.recipe
        best = parse_best(recipe.run.best, recipe.model.interaction, bool(len(queries.pair_P)))
        plan = make_plan(recipe, train.clips)
        return Prepared(recipe, self.model, self.loss, self.precision, train, plan, validation, queries, best)

    def _reporting(self, update: Update) -> Report:
        def report(done: int, _: int) -> None:
            update(done)
            if self.stop.asked:
                raise Interrupted("stopped while preparing features; those that are done are kept", "run the same command again to go on")

        return report


def prepare(recipe: Recipe, folder: Path, display: Display, stop: StopRequest) -> Prepared:
    """Build the model and bring the clips of both splits into the cache. Raises Interrupted when asked to stop."""
    train_set, validation_set = read_splits(recipe)
    if recipe.data.select_on_test:
        display.say("the weights are chosen by the TEST clips (data.select_on_test), as most published code does: no held-out result")
    bench = Bench(recipe, folder, display, stop)
    parse_best(recipe.run.best, recipe.model.interaction, bool(len(choose_queries(validation_set, 1).pair_P)))  # refuse before the work
    train_set, train_frames = bench.frames("train", train_set)
    validation_set, validation_frames = bench.frames("validation", validation_set)
    queries = choose_queries(validation_set, recipe.data.validation_captions)
    train = Split(train_set, train_frames, bench.texts("train", train_set.texts))
    validation = Split(validation_set, validation_frames, bench.texts("validation", queries.texts))
    if recipe.init.model is None:
        _standardise(bench.model, train.frames, recipe.run.seed)
    for line in caption_lines(train_set, recipe.optim.batch):
        display.say(line)
    prepared = bench.prepared(train, validation, queries)
    if prepared.plan.rows < recipe.optim.batch:
        display.say(f"optim.batch = {recipe.optim.batch} is more than there is: every batch is all {prepared.plan.rows} rows")
    if recipe.init.model is None and recipe.init.checkpoint is None:
        return prepared
    as_it_is = recipe.init.model is not None
    start = zero_shot_mrr(bench.model, validation.frames, validation.texts, queries, bench.precision, as_it_is=as_it_is)
    return replace(prepared, start_mrr=start)


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
    store = frame_cache(model, cache, frozen=frozen, precision=precision, decoder=recipe.data.decoder, fps=recipe.data.fps)
    inputs = [clip.input for clip in clips.clips]
    with (
        decode_pool(model, recipe.data.workers, recipe.data.decoder, recipe.data.fps) as decode,
        display.bar("test clips", len(inputs), "clips") as update,
    ):
        frames = prepare_frames(model, store, inputs, decode, frozen=frozen, precision=precision, report=lambda done, _: update(done))
    clips = _usable(clips, frames, True, display)
    queries = choose_queries(clips, captions)
    texts = prepare_texts(model, _tokenizer(model, folder), queries.texts, cache, frozen=frozen, precision=precision)
    return Split(clips, frames, texts), queries, precision


def make_plan(recipe: Recipe, train: ClipSet) -> BatchPlan:
    """The batches of a run. Raises UsageProblem where an epoch is shorter than one optimizer step."""
    data, optim = recipe.data, recipe.optim
    plan = BatchPlan(
        train.clips, size=optim.batch, seed=recipe.run.seed, reverse=data.reverse, caption_choice=data.caption_choice, meaning=train.meaning
    )
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


def _on_towers(recipe: Recipe, folder: Path) -> VideoColBERT:
    """A new model of the recipe over the towers of the model directory `folder`: what `vctool fetch` writes is a checkpoint too."""
    towers = load_model(folder)
    theirs, ours = towers.config.backbone, replace(recipe.model.backbone, adapter_rank=towers.config.backbone.adapter_rank)
    if theirs != ours or towers.config.embed_dim != recipe.model.embed_dim:
        raise UsageProblem(
            f"the towers in {folder} are {theirs.name}, the recipe's are {ours.name}", "init.checkpoint wants those of [model]"
        )
    model = build_model(recipe.model)
    model.backbone.load_state_dict(towers.backbone.state_dict(), strict=False)  # adapters, if there are any, are new
    return model


def _adapted(model: VideoColBERT, recipe: Recipe) -> VideoColBERT:
    """The model in `init.model` under the recipe's name; it may get adapters, everything else has to be what it is."""
    wanted = recipe.model
    rank = wanted.backbone.adapter_rank
    if rank and not model.config.backbone.adapter_rank:
        model.backbone.adapt(rank)
        model.config = replace(model.config, backbone=replace(model.config.backbone, adapter_rank=rank))
    if replace(model.config, versions={}, name="") != replace(wanted, versions={}, name=""):
        hint = "leave [model] out, but for name and backbone.adapter_rank: the rest is taken from its config.json"
        raise UsageProblem(f"[model] is not the model in {recipe.init.model}", hint)
    model.config = wanted
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
