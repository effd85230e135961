"""Working through grids: what is finished is read back, what was interrupted goes on, the rest is trained and measured."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vctool.ablation.grid import Grid, Run
from vctool.ablation.outcome import OUTCOME_FILE, Outcome, load_outcome, save_outcome
from vctool.errors import Diverged, Interrupted, UsageProblem
from vctool.evaluation.environment import environment
from vctool.metrics import PerQuery, evaluate_ranking
from vctool.models.checkpoint import load_model
from vctool.training import checkpoint
from vctool.training.display import Display, clock
from vctool.training.loop import RunFolder
from vctool.training.prepare import prepare_held_out
from vctool.training.result import describe_split, portable
from vctool.training.run import resume, start
from vctool.training.validation import score_split

_MEASURED_AT_ONCE = 64


@dataclass(frozen=True)
class Progress:
    """How far a set of runs is. seconds_each: mean time of the finished ones (training and measuring), None before the first."""

    finished: int
    begun: int
    waiting: int
    seconds_each: float | None


def distinct_runs(grids: Sequence[Grid], only: Sequence[str] = ()) -> list[Run]:
    """The runs of all grids, all cells under the first seed first, each key once; `only` keeps the cells with these names.

    Raises UsageProblem for a name that no grid has.
    """
    known = dict.fromkeys(cell.name for grid in grids for cell in grid.cells)
    for name in only:
        if name not in known:
            raise UsageProblem(f"there is no cell '{name}'", f"the cells are {', '.join(known)}")
    order = {seed: i for i, seed in enumerate(dict.fromkeys(run.seed for grid in grids for run in grid.runs))}
    runs: dict[str, Run] = {}
    for grid in grids:
        for run in grid.runs:
            if not only or run.cell.name in only:
                runs.setdefault(run.key, run)
    return sorted(runs.values(), key=lambda run: order[run.seed])


def outcome_of(run: Run, output: Path) -> Outcome | None:
    """The finished result of a run, or None."""
    return load_outcome(place_of(run, output) / OUTCOME_FILE, run.key)


def place_of(run: Run, output: Path) -> Path:
    """The run's folder, which may bear the name that another ablation gave the same run."""
    return next(iter(sorted((output / "runs").glob(f"*-seed{run.seed}-{run.key[:12]}"))), output / "runs" / run.folder)


def progress_of(runs: Sequence[Run], output: Path) -> Progress:
    """What of `runs` is done in `output`."""
    outcomes = [outcome_of(run, output) for run in runs]
    begun = sum(bool(checkpoint.checkpoints(RunFolder(place_of(run, output)).checkpoints)) for run in runs)
    spent = [float(o.about["wall_seconds"]) for o in outcomes if o is not None and "wall_seconds" in o.about]
    finished = sum(o is not None for o in outcomes)
    return Progress(finished, begun, len(runs) - finished - begun, float(np.mean(spent)) if spent else None)


def run_all(runs: Sequence[Run], output: Path, *, display: Display, verbose: bool = False, keep_models: bool = False) -> None:
    """Train and measure what has no result yet; each result is on disk before the next run begins.

    A run whose numbers leave the finite ones is a result too: `failed` says so. Raises Interrupted on Ctrl-C, with the run
    under way saved; VctoolError subclasses for whatever else a user can cause, with the finished runs kept.
    """
    waiting = [run for run in runs if outcome_of(run, output) is None]
    if len(waiting) < len(runs):
        display.say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished and are read back")
    for line in changed_cells(waiting, output):
        display.say(line)
    spent: list[float] = []
    for number, run in enumerate(waiting):
        began = time.monotonic()
        # The first run brings the features into the cache, which may take long: it is told in full.
        talk = display if verbose or number == 0 else Display(quiet=True)
        try:
            outcome = run_one(run, place_of(run, output), display=talk, keep_model=keep_models)
        except (Interrupted, KeyboardInterrupt):
            done = len(runs) - len(waiting) + number
            where = f"stopped in cell {run.cell.name}, seed {run.seed}; {done} of {len(runs)} runs are finished and kept"
            raise Interrupted(where, "run the same command again to go on") from None
        spent.append(time.monotonic() - began)
        left = clock(float(np.mean(spent)) * (len(waiting) - number - 1))
        display.say(f"[{number + 1}/{len(waiting)}] {run.cell.name}, seed {run.seed}: {_said(outcome)}, {spent[-1]:.0f} s; {left} left")


def run_one(run: Run, folder: Path, *, display: Display, keep_model: bool = False) -> Outcome:
    """Train a run in `folder` (going on where it stopped), measure it on the test clips, write its result."""
    began = time.monotonic()
    recipe = replace(run.recipe, run=replace(run.recipe.run, output=folder.resolve()))
    files = RunFolder(folder.resolve())
    about = {"cell": run.cell.name, "set": list(run.cell.set), "seed": run.seed, "recipe": portable(run.recipe)}
    try:
        resumed = bool(checkpoint.checkpoints(files.checkpoints))
        summary = resume(files.root, recipe, display=display) if resumed else start(recipe, display=display)
    except Diverged as problem:
        about |= {"wall_seconds": time.monotonic() - began, "environment": environment(run.seed)}
        outcome = Outcome(run.key, recipe.model.interaction, {}, {}, {}, problem.message.partition(";")[0], about)
    else:
        about |= {"steps": summary["steps"], "seconds": summary["seconds"], "best_step": summary["best"]["step"]}
        outcome = measure(run, files, about, began, display)
    save_outcome(outcome, folder / OUTCOME_FILE)
    shutil.rmtree(files.checkpoints, ignore_errors=True)
    if not keep_model:
        shutil.rmtree(files.model, ignore_errors=True)
    return outcome


def measure(run: Run, files: RunFolder, about: dict[str, object], began: float, display: Display) -> Outcome:
    """Score the test clips with the best weights, in PyTorch, whatever the cell: no two cells are scored by different code."""
    recipe = run.recipe
    if recipe.data.test is None:
        raise UsageProblem("data.test is missing", "name the manifest of the clips to measure on")
    torch.manual_seed(run.seed)
    model = load_model(files.model)
    loss = checkpoint.read_tensors(files.best)["loss"]
    split, queries, precision = prepare_held_out(recipe, model, recipe.data.test, run.captions, files.root, display)
    scores = score_split(model, split.frames, split.texts, queries, precision, batch=_MEASURED_AT_ONCE)
    results = {branch: evaluate_ranking(score, queries.relevant) for branch, score in scores.score_QN.items()}
    about |= {
        "log_scale": loss["log_scale"].tolist(),
        "bias": loss["bias"].tolist(),
        "trained_parameters": sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.backbone.frozen_parameters()),
        "test": {**describe_split(split.clips), "queries": len(queries.text_Q), "captions_per_clip": run.captions or "all"},
        "scored_by": "PyTorch",
        "tied_queries": {branch: one.tied_queries for branch, one in results.items()},
        "wall_seconds": round(time.monotonic() - began, 1),
        "environment": environment(run.seed),
    }
    return Outcome(
        key=run.key,
        primary=recipe.model.interaction,
        metrics={branch: one.values() for branch, one in results.items()},
        reversal=scores.reversal,
        per_query={branch: PerQuery.of(one.per_query) for branch, one in results.items()},
        failed=None,
        about=about,
    )


def changed_cells(runs: Sequence[Run], output: Path) -> list[str]:
    """A line for each cell that has an older result under another recipe or other data: it is trained anew."""
    lines = {}
    for run in runs:
        old = [p for p in (output / "runs").glob(f"{run.cell.name}-seed{run.seed}-*/{OUTCOME_FILE}") if p.parent != place_of(run, output)]
        if old:
            lines[run.cell.name] = (
                f"cell {run.cell.name}: recipe or data are not those of {old[0].parent.name}; it is trained anew, the old result is kept"
            )
    return list(lines.values())


def _said(outcome: Outcome) -> str:
    if outcome.failed is not None:
        return f"failed, {outcome.failed}"
    return f"R@1 {outcome.metrics[outcome.primary]['R@1']:.1f}"
