"""Training on a few hundred clips of one's own, and whether it was worth it.

Every clip is held out once in each of `data.repeats` rounds: a model that starts as the zero-shot one and is trained on the other
folds ranks the fold's clips for the fold's captions, and so does the zero-shot model. The same captions over the same clips: the
difference is paired, and its interval comes from resampling clips (a clip's captions, and its rounds, rise and fall together). Only
where the interval lies above zero, and a paired randomisation test agrees, is a model trained on all clips; otherwise the one to use is
the one that was there before.

A caption that a training clip has too is not asked: the answer was told. Clips of one file or one `group` are held out together.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vctool.errors import InputError, Interrupted, VctoolError
from vctool.metrics import PairedComparison, PerQuery, compare_paired, evaluate_ranking
from vctool.models.losses import RetrievalLoss
from vctool.training import checkpoint
from vctool.training.advice import caption_lines
from vctool.training.checkpoint import seed_everything
from vctool.training.clips import ClipSet, read_clips
from vctool.training.display import Display
from vctool.training.log import RunLog
from vctool.training.loop import RunFolder, Trainer
from vctool.training.prepare import Bench, Split
from vctool.training.recipe import FREE_KEYS, Recipe, recipe_dict
from vctool.training.result import hardware, story_of, write_result
from vctool.training.splits import fold_members
from vctool.training.stop import StopRequest
from vctool.training.validation import Queries, choose_queries, score_split

METRIC = "MRR"
"""What decides: the mean reciprocal rank moves where R@1 stands still, and with few captions that is most of what can be seen."""
LEVEL = 0.95
FEWEST_CLIPS = 10
_NEVER = 10**9
_VERDICT = "verdict.json"


@dataclass(frozen=True)
class FoldResult:
    """The captions of one held-out fold: their clips' ids, and what each was worth to the model before and after training."""

    clips: list[str]
    before: PerQuery
    after: PerQuery
    told: int

    def to_dict(self) -> dict[str, Any]:
        return {"clips": self.clips, "before": self.before.to_dict(), "after": self.after.to_dict(), "told": self.told}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FoldResult:
        return cls(values["clips"], PerQuery.from_dict(values["before"]), PerQuery.from_dict(values["after"]), values["told"])


@dataclass(frozen=True)
class Verdict:
    """What cross-validation says. comparison: a is the zero-shot model, b the trained one; told: captions not asked."""

    comparison: PairedComparison
    clips: int
    captions: int
    told: int

    @property
    def outcome(self) -> str:
        """`gain`, `loss`, or `none` where nothing can be told from noise."""
        own = self._own
        surely = own.p_value is not None and own.p_value <= 1 - LEVEL
        return "gain" if own.low > 0 and surely else "loss" if own.high < 0 and surely else "none"

    @property
    def _own(self) -> Any:
        return next(d for d in self.comparison.differences if d.metric == METRIC)

    def words(self) -> list[str]:
        """Two or three lines for a person."""
        own = self._own
        numbers = (
            f"{METRIC} {own.b:.3f} trained, {own.a:.3f} zero-shot: {own.difference:+.3f}, 95 % interval {own.low:+.3f} to {own.high:+.3f}"
        )
        lines = [f"on clips held out of training: {numbers} ({self.captions} captions of {self.clips} clips)"]
        if self.told:
            lines.append(f"{self.told} times a caption was not asked, because a training clip had the very same one")
        if self.outcome == "gain":
            lines.append("training helps")
        elif self.outcome == "loss":
            lines.append("training does harm here: keep the zero-shot model")
        else:
            seen = (own.high - own.low) / 2
            lines.append(
                f"no measurable gain, keep the zero-shot model (from these clips, one below about {seen:.2f} cannot be told from noise)"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the outcome, and every metric with its interval."""
        return {
            "schema": 1,
            "outcome": self.outcome,
            "decided_by": METRIC,
            "words": self.words(),
            "clips": self.clips,
            "captions": self.captions,
            "captions_not_asked": self.told,
            "metrics": [d.to_dict() for d in self.comparison.differences],
        }


def train_own_clips(recipe: Recipe, folder: RunFolder, display: Display, stop: StopRequest) -> dict[str, Any]:
    """Cross-validate, decide, and train on all clips if that is worth it. Returns the summary of a run, with `verdict` and `trained`.

    `model` in it is the better one: `FOLDER/model`, or the model that training started from. Finished folds are kept, so the same
    command goes on after a stop. Raises InputError for too few clips to tell anything.
    """
    clips = read_clips(recipe.data.train, recipe.data.limit)
    if len(clips) < FEWEST_CLIPS:
        raise InputError(
            f"{clips.path} has {len(clips)} captioned {'clip' if len(clips) == 1 else 'clips'}: whether training helps cannot be told from "
            f"fewer than {FEWEST_CLIPS}",
            "caption more of them: some hundred captions are a start",
        )
    fold_members(clips.clips, recipe.data.folds, recipe.run.seed)  # refuse before the work
    bench = Bench(recipe, folder.root, display, stop)
    clips, frames = bench.frames("own", clips)
    whole = Split(clips, frames, bench.texts("own", clips.texts))
    for line in caption_lines(clips, recipe.optim.batch):
        display.say(line)
    start = checkpoint.tensors_of(bench.model.moving_state())
    results = _held_out(bench, whole, start, folder, display, stop)
    verdict = judge(results, recipe.data.repeats)
    for line in verdict.words():
        display.say(line)
    (folder.root / _VERDICT).write_text(json.dumps(verdict.to_dict(), indent=2) + "\n", encoding="utf-8")
    assert recipe.init.model is not None  # the recipe was checked
    summary = {"schema": 1, "run": str(folder.root), "verdict": verdict.to_dict()}
    if verdict.outcome != "gain":
        display.say(f"the model to use: {recipe.init.model}")
        return {**summary, "model": str(recipe.init.model), "trained": False}
    reset(bench, start, recipe)
    steps = _finish(bench, whole, verdict, folder, stop)
    display.say(f"trained on all {len(clips)} clips: {folder.model}")
    return {**summary, "model": str(folder.model), "trained": True, "steps": steps}


def judge(results: Sequence[FoldResult], rounds: int) -> Verdict:
    """The paired comparison over all folds of all rounds, clips as the units of resampling."""
    names = [name for result in results for name in result.clips]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    groups = np.array([order[name] for name in names], dtype=np.int64)
    comparison = compare_paired(_joined([r.before for r in results]), _joined([r.after for r in results]), level=LEVEL, groups=groups)
    return Verdict(comparison, len(order), len(names) // max(rounds, 1), sum(r.told for r in results))


def evaluate_fold(bench: Bench, train: Split, held: Split, folder: RunFolder, stop: StopRequest) -> FoldResult:
    """Train `bench`'s model on one split and rank the other's clips before and after. The model is left trained."""
    queries, told = fresh_queries(held.clips, train.clips)
    if queries is None:
        return FoldResult([], _nothing(), _nothing(), told)
    quiet = Display(quiet=True)
    prepared = bench.prepared(train, Split(held.clips, held.frames, bench.texts("held-out", queries.texts)), queries)
    owner = [held.clips.clips[min(right)].input.id for right in queries.relevant]

    def ranked() -> PerQuery:
        scores = score_split(bench.model, prepared.validation.frames, prepared.validation.texts, queries, bench.precision)
        return PerQuery.of(evaluate_ranking(scores.score_QN[bench.recipe.model.interaction], queries.relevant).per_query)

    before = ranked()
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    with RunLog(folder.root, tensorboard=False, after=0) as log:
        Trainer(prepared, folder, quiet, log, stop).train()
    return FoldResult(owner, before, ranked(), told)


def fresh_queries(held: ClipSet, train: ClipSet) -> tuple[Queries | None, int]:
    """All captions of the held-out clips that no training clip has, and how many were left out."""
    known = {train.meaning[t] for clip in train.clips for t in clip.captions}  # both are parts of one set: their numbers are the same
    kept, told = [], 0
    for clip in held.clips:
        fresh = tuple(t for t in clip.captions if held.meaning[t] not in known)
        told += len(clip.captions) - len(fresh)
        kept.append(replace(clip, captions=fresh, reversed_captions=()))
    if not any(clip.captions for clip in kept):
        return None, told
    return choose_queries(replace(held, clips=tuple(kept)), 0), told


def rows_of(split: Split, rows: Sequence[int]) -> Split:
    """The split of the clips at these positions."""
    frames = replace(split.frames, rows=split.frames.rows.only(np.array(rows, dtype=np.int64)), failed={})
    return Split(split.clips.only(rows), frames, split.texts)


def _held_out(
    bench: Bench, whole: Split, start: dict[str, torch.Tensor], folder: RunFolder, display: Display, stop: StopRequest
) -> list[FoldResult]:
    recipe, data = bench.recipe, bench.recipe.data
    done = folder.root / "folds" / _key(recipe, whole.clips)
    scratch = RunFolder(folder.root / "folds" / "now")
    results = []
    with display.bar("held out", data.repeats * data.folds, "folds") as update:
        for round_ in range(data.repeats):
            members = fold_members(whole.clips.clips, data.folds, recipe.run.seed + round_)
            for fold, held in enumerate(members):
                file = done / f"round-{round_}-fold-{fold}.json"
                result = _stored(file)
                if result is None:
                    if stop.asked:
                        raise _stopped(folder)
                    train = sorted(set(range(len(whole.clips))) - set(held))
                    reset(bench, start, replace(recipe, run=replace(recipe.run, seed=recipe.run.seed + round_)))
                    shutil.rmtree(scratch.root, ignore_errors=True)
                    try:
                        result = evaluate_fold(bench, rows_of(whole, train), rows_of(whole, held), scratch, stop)
                    except Interrupted:
                        raise _stopped(folder) from None
                    result = _store(file, result)
                results.append(result)
                update(len(results))
    shutil.rmtree(scratch.root, ignore_errors=True)
    if not any(result.clips for result in results):
        raise InputError(
            f"every caption of {whole.clips.path} belongs to clips on both sides of every fold: there is nothing to ask",
            "captions have to tell clips apart",
        )
    return results


def _finish(bench: Bench, whole: Split, verdict: Verdict, folder: RunFolder, stop: StopRequest) -> int:
    """Train on all clips and write the model directory; its numbers are those of the held-out clips."""
    queries = choose_queries(whole.clips, 1)
    prepared = bench.prepared(whole, Split(whole.clips, whole.frames, bench.texts("own", queries.texts)), queries)
    for old in checkpoint.checkpoints(folder.checkpoints):
        old.unlink()
    with RunLog(folder.root, tensorboard=False, after=0) as log:
        try:
            # What it says of itself is about clips that it is trained on.
            progress = Trainer(prepared, folder, Display(quiet=True), log, stop).train()
        except Interrupted:
            raise _stopped(folder) from None
    branch = bench.recipe.model.interaction
    held = {f"{branch}/{d.metric}": d.b for d in verdict.comparison.differences}
    story = story_of(prepared, progress, hardware(bench.precision.device)) | {
        "best": {"step": progress.step, "value": held[f"{branch}/{METRIC}"], "metrics": held},
        "chosen_by": ["cross-validation"],
        "own_clips": verdict.to_dict(),
        "history": [],
    }
    try:
        write_result(folder.model, bench.model, story)
    except OSError as problem:
        raise VctoolError(f"{folder.model} could not be written: {problem.strerror or problem}", "make room and run it again") from None
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return progress.step


def reset(bench: Bench, start: dict[str, torch.Tensor], recipe: Recipe) -> None:
    """The model as it was before any training, with a loss of its own, seeded. Validated at the end alone: no fold chooses anything."""
    seed_everything(recipe.run.seed)
    bench.recipe = replace(recipe, run=replace(recipe.run, validate_every=_NEVER, checkpoint_every=0, patience=0, stall_steps=0))
    bench.model.load_state_dict(start, strict=False)
    bench.loss = RetrievalLoss(bench.loss.config).to(bench.precision.device)


def _key(recipe: Recipe, clips: ClipSet) -> str:
    """What the results of folds depend on: a changed recipe or manifest begins anew."""
    tables = recipe_dict(recipe)
    for key in FREE_KEYS:
        table, name = key.split(".")
        tables[table].pop(name, None)
    content = json.dumps([tables, clips.sha256, [clip.input.id for clip in clips.clips]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _stored(file: Path) -> FoldResult | None:
    try:
        return FoldResult.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or cut off in the middle


def _store(file: Path, result: FoldResult) -> FoldResult:
    """What is read back is what counts: a run that was interrupted must not differ in the last digit."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result.to_dict()) + "\n", encoding="utf-8")
    partial.replace(file)
    return FoldResult.from_dict(json.loads(file.read_text(encoding="utf-8")))


def _stopped(folder: RunFolder) -> Interrupted:
    return Interrupted("stopped; the folds that are done are kept", f"go on with: vctool train --resume {shlex.quote(str(folder.root))}")


def _nothing() -> PerQuery:
    return PerQuery.from_ranks(np.zeros(0))


def _joined(parts: Sequence[PerQuery]) -> PerQuery:
    def column(name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(part, name) for part in parts])

    return PerQuery(column("rank"), column("reciprocal"), column("precision"), column("ndcg"))
