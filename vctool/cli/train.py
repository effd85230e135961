"""`vctool train`: a recipe in, a model directory out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import click


@click.command(short_help="Train a model from a recipe.")
@click.argument("recipe", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the recipe, such as optim.lr=1e-3. Repeatable."
)
@click.option("--resume", "run", type=click.Path(path_type=Path, file_okay=False), help="Go on with the run in this folder.")
@click.option("--output", "-o", type=click.Path(path_type=Path, file_okay=False), help="The run's folder. [default: runs/NAME]")
@click.option("--seed", type=click.IntRange(0), help="Seed of weights, batches and captions.")
@click.option("--dry-run", is_flag=True, help="Say what the run would do and cost; train nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def train(
    recipe: Path | None,
    overrides: tuple[str, ...],
    run: Path | None,
    output: Path | None,
    seed: int | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a model from RECIPE.toml and leave it in FOLDER/model, ready to index and query.

    Ctrl-C saves and says how to go on. A run that went on with --resume ends as if it had never stopped.
    """
    from vctool.errors import MissingExtraError, UsageProblem

    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    if recipe is None and run is None:
        raise UsageProblem("no recipe", "name a RECIPE.toml, or --resume the folder of a run")
    if run is not None and output is not None:
        raise UsageProblem("--resume and --output exclude each other", "a run goes on in its own folder")
    import dataclasses

    from vctool.training.log import Display
    from vctool.training.recipe import load_recipe
    from vctool.training.run import RECIPE, output_folder, resume
    from vctool.training.run import train as start

    settings = None
    if recipe is not None or overrides or seed is not None:
        assert recipe is not None or run is not None
        settings = load_recipe(recipe if recipe is not None else Path(run or ".") / RECIPE, overrides)
        changes = {"output": output.resolve()} if output is not None else {}
        settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, **changes))
        if seed is not None:
            settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, seed=seed))
    display = Display(quiet=quiet)
    if dry_run:
        from vctool.training.prepare import estimate

        settings = settings or load_recipe(Path(run or ".") / RECIPE)
        plan = estimate(settings, output_folder(settings))
        click.echo(json.dumps(plan, indent=2) if as_json else "\n".join(_plan_lines(plan)))
        return
    summary = resume(run, settings, display=display) if run is not None else start(settings, display=display)  # type: ignore[arg-type]
    from vctool_export import export_graphs

    export_graphs(Path(summary["model"]))
    if as_json:
        click.echo(json.dumps(summary))
    else:
        click.echo(summary["model"])


def _plan_lines(plan: dict[str, object]) -> list[str]:
    lines = []
    for key, value in plan.items():
        if key == "schema":
            continue
        shown = ", ".join(f"{k} {_number(v)}" for k, v in value.items()) if isinstance(value, dict) else _number(value)
        lines.append(f"{key.replace('_', ' '):16} {shown}")
    return lines


def _number(value: object) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
