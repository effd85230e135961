"""A run from its first line to its model directory: what `vctool train` calls."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vctool.errors import InputError, Interrupted, UsageProblem, VctoolError
from vctool.training import checkpoint
from vctool.training.advice import below_start, pad_lines
from vctool.training.display import Display, clock
from vctool.training.log import NoLog, RunLog
from vctool.training.loop import RunFolder, Trainer
from vctool.training.own_clips import train_own_clips
from vctool.training.prepare import Prepared, prepare
from vctool.training.profile import profile_lines
from vctool.training.ranks import Ranks, joined, restarted
from vctool.training.recipe import FREE_KEYS, Recipe, differences, load_recipe, recipe_dict, recipe_toml, without_later_keys
from vctool.training.result import hardware, story_of, versions, write_result
from vctool.training.stop import stop_requests

RECIPE = "recipe.toml"


def output_folder(recipe: Recipe) -> Path:
    """The run's folder: `run.output`, or `runs/NAME` in the current folder."""
    return recipe.run.output or Path.cwd() / "runs" / recipe.run.name


def start(recipe: Recipe, *, display: Display | None = None) -> dict[str, Any]:
    """Train from the start. Returns a summary (`model`, `best`, `steps`, …); the model directory is `FOLDER/model`.

    Under torchrun all processes call it; the first one talks and writes. One that torchrun started anew goes on from the last
    checkpoint.

    Raises UsageProblem where the folder already holds a run, Interrupted (saved) on Ctrl-C, VctoolError subclasses for
    whatever else a user can cause.
    """
    folder = RunFolder(output_folder(recipe))
    if restarted() and checkpoint.checkpoints(folder.checkpoints):
        return resume(folder.root, recipe, display=display)  # torchrun gives a run that failed the command it began with
    if checkpoint.checkpoints(folder.checkpoints) or (folder.model / "model.safetensors").exists():
        raise UsageProblem(
            f"{folder.root} already holds a run", f"go on with --resume {shlex.quote(str(folder.root))}, or choose another --output"
        )
    return _run(recipe, folder, None, display or Display())


def stored_recipe(root: Path) -> Path:
    """The recipe file of a run. Raises InputError where `root` is not the folder of one."""
    if not (root / RECIPE).is_file():
        raise InputError(f"{root} is not the folder of a run: it has no {RECIPE}", "name the folder that `vctool train` made")
    return root / RECIPE


def resume(root: Path, recipe: Recipe | None = None, *, display: Display | None = None) -> dict[str, Any]:
    """Go on with the run in folder `root`, exactly as if it had not stopped. Returns what `start` returns.

    recipe: the caller's idea of it; where it differs in a key that changes what is learnt, UsageProblem names the keys.
    """
    folder = RunFolder(root.resolve())
    wanted = recipe or load_recipe(stored_recipe(folder.root))
    if wanted.data.folds:  # its folds are known by what they depend on
        return _run(replace(wanted, run=replace(wanted.run, output=folder.root)), folder, None, display or Display())
    content = checkpoint.load_checkpoint(folder.checkpoints)
    wanted = replace(wanted, run=replace(wanted.run, output=folder.root))
    changed = [
        d for d in differences(without_later_keys(content["recipe"]), without_later_keys(recipe_dict(wanted))) if d[0] not in FREE_KEYS
    ]
    if changed:
        listed = "; ".join(f"{key}: {_said(old)} then, {_said(new)} now" for key, old, new in changed)
        raise UsageProblem(f"the recipe is not the one this run began with: {listed}", "resume with the old values, or start a new run")
    return _run(wanted, folder, content, display or Display())


def _run(recipe: Recipe, folder: RunFolder, content: dict[str, Any] | None, display: Display) -> dict[str, Any]:
    with joined(recipe.run.backend) as ranks, stop_requests() as stop:
        display = display if ranks.leads else Display(quiet=True)
        if ranks.leads:
            with _writing(folder.root):
                folder.checkpoints.mkdir(parents=True, exist_ok=True)
                if content is None:
                    (folder.root / RECIPE).write_text(recipe_toml(recipe), encoding="utf-8")
        if recipe.data.folds:
            if ranks.world > 1:
                raise UsageProblem("held-out rounds of small trainings run in one process", "start it without torchrun")
            return train_own_clips(recipe, folder, display, stop)
        with ranks.in_turn():
            prepared = prepare(recipe, folder.root, display, stop)
            if stop.asked:
                raise Interrupted("stopped before the first step; features are kept", "run the same command again to go on")
        machine = hardware(prepared.precision.device) | {"processes": ranks.world}
        after = content["progress"].step if content is not None else 0
        with _log(recipe, folder, after, ranks, machine) as log:
            trainer = Trainer(prepared, folder, display, log, stop, ranks)
            ranks.refuse_difference(trainer.data, "the clips or captions")
            if content is not None:
                trainer.restore(content)
                ranks.refuse_difference(str(after), "the checkpoints")
                log.write("resumed", after, {"processes": ranks.world})
            _announce(prepared, trainer, display)
            progress = trainer.train()
            summary: dict[str, Any] = {}
            ranks.lead(lambda: summary.update(_finish(prepared, folder, progress, machine)))
            if ranks.leads:
                for line in _advice(prepared, summary["best"]):
                    display.say(line)
                if recipe.run.profile:
                    summary["profile"] = trainer.clock.report()
                    log.write("profile", progress.step, summary["profile"])
                    for line in profile_lines(summary["profile"]):
                        display.say(line)
                log.write("end", progress.step, {"best": summary["best"], "seconds": progress.seconds})
                display.say(f"trained in {clock(progress.seconds)}; best at step {summary['best']['step']}: {folder.model}")
    return summary


def _log(recipe: Recipe, folder: RunFolder, after: int, ranks: Ranks, machine: dict[str, Any]) -> RunLog:
    if not ranks.leads:
        return NoLog()
    about = {"seed": recipe.run.seed, "versions": versions(), "hardware": machine, "command": sys.argv}
    with _writing(folder.root):
        (folder.root / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return RunLog(folder.root, tensorboard=recipe.run.tensorboard, after=after)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise InputError(f"{root} cannot be written: {problem.strerror}", "choose another --output") from None


def _announce(prepared: Prepared, trainer: Trainer, display: Display) -> None:
    optim, clips = prepared.recipe.optim, len(prepared.train.clips)
    trained = sum(p.numel() for p in trainer.trained)
    length = f"{prepared.total_steps:,} steps of {optim.batch * optim.accumulate} rows, {prepared.epoch_steps:,} an epoch"
    where = f"{prepared.precision.name} on {prepared.precision.device}"
    if trainer.ranks.world > 1:
        where += f", {trainer.ranks.world} processes"
    display.say(f"{trained:,} trained parameters, {clips:,} clips ({prepared.plan.rows:,} rows an epoch), {length}; {where}")
    if optim.batch > prepared.plan.rows:
        display.say(f"optim.batch is {optim.batch}, the training clips make {prepared.plan.rows} rows: every step sees all of them")
    if trainer.progress.step:
        display.say(f"going on from step {trainer.progress.step}")


def _finish(prepared: Prepared, folder: RunFolder, progress: checkpoint.Progress, machine: dict[str, Any]) -> dict[str, Any]:
    """The best weights into the model directory, with their story."""
    best = progress.best
    if best is None:
        raise VctoolError("the run ended without a validation", "set run.validate_every below the number of steps")
    state = checkpoint.read_tensors(folder.best)
    prepared.model.load_state_dict(state["model"], strict=False)
    prepared.loss.load_state_dict(state["loss"])
    story = story_of(prepared, progress, machine)
    try:
        write_result(folder.model, prepared.model, story)
    except OSError as problem:
        again = f"make room, then: vctool train --resume {shlex.quote(str(folder.root))}"
        raise VctoolError(f"{folder.model} could not be written: {problem.strerror or problem}; the checkpoints are kept", again) from None
    return {
        "schema": 1,
        "run": str(folder.root),
        "model": str(folder.model),
        "best": best,
        "steps": progress.step,
        "seconds": story["seconds"],
    }


def _advice(prepared: Prepared, best: dict[str, Any]) -> list[str]:
    """What the best weights, which the model holds now, should be told about."""
    it, branch = prepared, prepared.recipe.model.interaction
    lines = pad_lines(it.model, it.validation.frames, it.validation.texts, it.queries, it.precision)
    found = best["metrics"].get(f"{branch}/MRR")
    if it.start_mrr is not None and found is not None and found < it.start_mrr:
        lines.append(f"even the best weights are {below_start(found, it.start_mrr)}")
    return lines


def _said(value: Any) -> str:
    return "unset" if value is None else str(value)
