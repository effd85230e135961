"""`vctool ablate`: grids of training runs, and a table for each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command
from vctool.cli.console import print_json
from vctool.cli.options import PATH, json_option
from vctool.errors import MissingExtraError

if TYPE_CHECKING:
    from vctool.ablation.grid import Grid, Run


@command(
    "ablate",
    examples=(
        "vctool ablate loss --dry-run --set data.train=a.jsonl --set data.validation=b.jsonl --set data.test=c.jsonl",
        "vctool ablate mine.toml -o ablations",
        "vctool ablate mine.toml --only narrow --seed 0",
    ),
)
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="ABLATION.toml...")
@click.option("-o", "--output", type=PATH, default=Path("ablations"), show_default=True, metavar="DIR", help="Runs, features and tables.")
@click.option("--base", type=PATH, metavar="RECIPE.toml", help="The base recipe, instead of the files' own.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the base recipe for all cells; repeatable.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(min=0), help="Instead of the files' seeds; repeatable.")
@click.option("--only", multiple=True, metavar="CELL", help="Train this cell alone; repeatable. Tables hold all that is finished.")
@click.option("--dry-run", is_flag=True, help="List the cells, what is finished, and the time left; train nothing.")
@click.option("--tables", "tables_only", is_flag=True, help="Write the tables from what is finished; train nothing.")
@click.option("--keep-models", is_flag=True, help="Keep each run's best weights.")
@click.option("-v", "--verbose", is_flag=True, help="Show every run's own progress.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no talk.")
@json_option
def ablate(
    files: tuple[Path, ...],
    output: Path,
    base: Path | None,
    overrides: tuple[str, ...],
    seeds: tuple[int, ...],
    only: tuple[str, ...],
    dry_run: bool,
    tables_only: bool,
    keep_models: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train and measure the cells of each ABLATION.toml; write DIR/NAME.md and DIR/NAME.json.

    Run the same command again to go on after a stop: finished runs are read back, and a run that several files share
    (the baseline) is trained once. The names interaction, loss, expansion and scale stand for the files that ship with
    vctool, and world and msrvtt-clip-b32 for their base recipes.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    from vctool.ablation.grid import find_file, load_grid
    from vctool.ablation.run import distinct_runs, run_all
    from vctool.ablation.table import table_of, text_of, write_table
    from vctool.training.display import Display

    base = None if base is None else find_file(base, "recipe")
    grids = [load_grid(find_file(file, "ablation file"), output, overrides, seeds, base) for file in files]
    runs = distinct_runs(grids, only)
    if dry_run:
        _tell_plan(grids, runs, output, as_json)
        return
    display = Display(quiet=quiet)
    try:
        if not tables_only:
            run_all(runs, output, display=display, verbose=verbose, keep_models=keep_models)
    finally:
        tables = [table_of(grid, output) for grid in grids]
        for table in tables:
            write_table(table, output)
    if as_json:
        print_json({"schema": 1, "tables": [table.to_dict() for table in tables]})
    else:
        click.echo("\n".join(text_of(table) for table in tables))


def _tell_plan(grids: list[Grid], runs: list[Run], output: Path, as_json: bool) -> None:
    from vctool.ablation.run import outcome_of, progress_of

    progress = progress_of(runs, output)
    left = None if progress.seconds_each is None else progress.seconds_each * (progress.begun + progress.waiting)
    plan: dict[str, Any] = {
        "schema": 1,
        "runs": len(runs),
        "finished": progress.finished,
        "begun": progress.begun,
        "seconds_each": progress.seconds_each,
        "seconds_left": left,
        "ablations": [
            {
                "name": grid.ablation.name,
                "question": grid.ablation.question,
                "seeds": list(grid.ablation.seeds),
                "cells": [
                    {
                        "name": cell.name,
                        "set": list(cell.set),
                        "length": _length(next(run for run in grid.runs if run.cell == cell)),
                        "finished": sum(outcome_of(run, output) is not None for run in grid.runs if run.cell == cell),
                    }
                    for cell in grid.cells
                ],
            }
            for grid in grids
        ],
    }
    if as_json:
        print_json(plan)
        return
    for one in plan["ablations"]:
        click.echo(f"{one['name']}: {one['question']}")
        for cell in one["cells"]:
            done = f"{cell['finished']}/{len(one['seeds'])} seeds"
            click.echo(f"  {cell['name']:24} {done:10} {cell['length']:12} {' '.join(cell['set']) or '(base)'}")
    from vctool.training.display import clock

    time = "not known before a first run is finished" if left is None else f"about {clock(left)}, from the finished ones"
    click.echo(f"{len(runs)} different runs, {progress.finished} finished, {progress.begun} begun; time left: {time}")


def _length(run: Run) -> str:
    optim = run.recipe.optim
    return f"{optim.steps:,} steps" if optim.steps else f"{optim.epochs} epochs"
