"""`vctool train`: a recipe in, a model directory out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command
from vctool.cli.console import amount, plain_table, print_json, stdout
from vctool.cli.options import PATH, json_option
from vctool.errors import MissingExtraError, UsageProblem

if TYPE_CHECKING:
    from vctool.training.display import Display
    from vctool.training.recipe import Recipe


@command(
    "train",
    examples=(
        "vctool train own-clips --data clips.jsonl --init my-model -o runs/mine",
        "vctool train recipe.toml --dry-run",
        "vctool train recipe.toml --set optim.lr=1e-3 --set data.cache=/fast/cache -o runs/first",
        "vctool train --resume runs/first",
        "torchrun --nproc-per-node=8 -m vctool train recipe.toml",
    ),
)
@click.argument("recipe", required=False, type=PATH, metavar="RECIPE")
@click.option(
    "--data",
    type=PATH,
    metavar="PATH",
    help="The clips: a JSONL manifest to train on, or a folder with train.jsonl and, if there, validation.jsonl and test.jsonl.",
)
@click.option("--init", type=PATH, metavar="MODEL", help="Start from this model directory (init.model).")
@click.option("--list", "listing", is_flag=True, help="Show the recipes that ship with vctool.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the recipe, such as optim.lr=1e-3; repeatable."
)
@click.option("--resume", "run", type=PATH, metavar="RUN", help="Go on with the run in this folder, exactly as if it had not stopped.")
@click.option("-o", "--output", type=PATH, metavar="RUN", help="The run's folder.  [default: run.output, or runs/NAME]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the weights, the batches and the captions.")
@click.option("--profile", is_flag=True, help="Say at the end where a step's time went: data, encode, loss, backward, optimiser.")
@click.option("--dry-run", is_flag=True, help="Say what the run would do and cost; train nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no talk.")
@json_option
def train(
    recipe: Path | None, listing: bool, run: Path | None, output: Path | None, dry_run: bool, quiet: bool, as_json: bool, **changes: Any
) -> None:
    """Train a model from RECIPE, a TOML file or the name of one that ships; it lies in RUN/model at the end, ready to index and query.

    With `own-clips` every clip is held out in its turn first, and a model is written only if training measurably helps.

    Under torchrun several processes share every batch (optim.batch is the whole of it); one that is started anew goes on from the
    last checkpoint.

    Paths in the recipe are relative to its folder, those of --set to the current one. Ctrl-C saves and says how to go on.
    """
    if listing:
        _list(as_json)
        return
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    for name, extra in (("onnx", "export"), ("onnxscript", "export"), ("onnxruntime", "cpu")):
        # The run ends with the graphs: better to hear of it now than after hours.
        if not dry_run and importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"{name}, which writes or proves the graphs at the end,", extra)
    if recipe is None and run is None:
        raise UsageProblem(
            "no recipe given", "name a RECIPE.toml or a recipe of `vctool train --list`, or --resume RUN to go on with a run"
        )
    if run is not None and output is not None:
        raise UsageProblem("--resume and --output exclude each other", "a run goes on in its own folder")
    from vctool.training.ranks import follows
    from vctool.training.recipe import find_recipe
    from vctool.training.run import output_folder, resume, start, stored_recipe

    recipe = None if recipe is None else find_recipe(recipe)
    named = recipe if recipe is not None else stored_recipe(run or Path())
    settings = _settings(named, output, **changes)
    if dry_run:
        if follows():
            return
        from vctool.training.estimate import estimate

        plan = estimate(settings, run or output_folder(settings))
        if as_json:
            print_json(plan)
        else:
            click.echo("\n".join(_plan_lines(plan)))
        return
    from vctool.training.display import Display

    display = Display(quiet=quiet)
    summary = start(settings, display=display) if run is None else resume(run, settings, display=display)
    if follows():  # the first process tells the result and writes the graphs
        return
    if not summary.get("trained", True):
        pass  # the model to use is the one that was there, with its graphs
    elif settings.model.similarity == "mean":
        _export(Path(summary["model"]), display)
    else:
        display.say(f'no graphs are written: similarity = "{settings.model.similarity}" is scored by PyTorch alone')
    if as_json:
        print_json(summary)
    else:
        click.echo(summary["model"])


def _export(model: Path, display: Display) -> None:
    from vctool_export import export_graphs

    try:
        export_graphs(model, progress=display.say)
    except MissingExtraError as problem:
        # The training is done and worth keeping: what is missing is told, with the way on.
        click.echo(
            f"the graphs that index and query need were not written: {problem.message} ({problem.hint}), then: vctool export {model}",
            err=True,
        )


def _settings(
    recipe: Path, output: Path | None, overrides: tuple[str, ...], seed: int | None, data: Path | None, init: Path | None, profile: bool
) -> Recipe:
    from dataclasses import replace

    from vctool.training.recipe import data_overrides, load_recipe, quoted

    named = [] if data is None else data_overrides(data)
    settings = load_recipe(recipe, [*named, *([] if init is None else [f"init.model={quoted(init)}"]), *overrides])
    if profile:
        settings = replace(settings, run=replace(settings.run, profile=True))
    if seed is not None:
        settings = replace(settings, run=replace(settings.run, seed=seed))
    if output is not None:
        settings = replace(settings, run=replace(settings.run, output=output.resolve()))
    return settings


def _list(as_json: bool) -> None:
    recipes = Path(__file__).parents[1] / "training" / "recipes"  # read without torch, which the recipe module wants
    rows = [
        {"name": path.stem, "what": path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")}
        for path in sorted(recipes.glob("*.toml"))
    ]
    if as_json:
        print_json({"schema": 1, "recipes": rows})
        return
    table = plain_table("name", "what it trains")
    for row in rows:
        table.add_row(row["name"], row["what"])
    stdout().print(table)


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    sizes, train, cache = plan["parameters"], plan["train"], plan["cache"]
    facts = {
        "parameters": f"{sizes['trained']:,} trained of {sizes['backbone'] + sizes['temporal']:,}; temporal encoder {sizes['temporal']:,}",
        "training": f"{train['clips']:,} clips, {train['captions']:,} captions, {train['rows_per_epoch']:,} rows an epoch",
        "validation": f"{plan['validation']['clips']:,} clips; best by {' + '.join(plan['validation']['best'])}",
        "length": f"{plan['steps']:,} steps, {plan['steps_per_epoch']:,} an epoch, of {plan['batch']:,} rows x {plan['accumulate']}",
        "device": f"{plan['device']}, {plan['precision']}",
        "memory": _memory(plan),
        "time": _time(plan),
        "to prepare": f"{cache['missing_clips']:,} clips ({cache['what']}, {amount(cache['bytes'])})",
    }
    if train["without_caption"]:
        facts["left out"] = f"{train['without_caption']:,} clips without a caption"
    if cache["unreadable_clips"]:
        facts["missing"] = f"{cache['unreadable_clips']:,} files are not there"
    lines = [f"{name:12}{fact}" for name, fact in facts.items()]
    groups = [f"{g['name']}: {g['parameters']:,}, rate {g['lr']:g}, decay {g['weight_decay']:g}" for g in plan["groups"]]
    return lines[:1] + [f"{'':12}{group}" for group in groups] + lines[1:]


def _memory(plan: dict[str, Any]) -> str:
    held = plan["bytes"]
    fixed = held["weights"] + held["gradients"] + held["optimizer"] + held["average"]
    return (
        f"about {amount(held['total'])}: weights, gradients and optimizer {amount(fixed)}, activations of {plan['rows_at_once']:,} rows "
        f"{amount(held['activations'])}, tokens and scores {amount(held['tokens'])}"
    )


def _time(plan: dict[str, Any]) -> str:
    step, hours = plan["step"], plan["hours"]
    how = "measured" if step["rows_tried"] == plan["batch"] else f"reckoned from {step['rows_tried']} rows"
    whole = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" if hours > 1 / 60 else f"{3600 * hours:.0f} seconds"
    return f"{step['seconds']:.2g} s a step ({how}), {whole} of steps, without validation and features"
