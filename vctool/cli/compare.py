"""`vctool compare`: is B better than A on the same queries?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command
from vctool.cli.console import plain_table, print_json, say, stdout
from vctool.cli.options import PATH, json_option
from vctool.errors import InputError

if TYPE_CHECKING:
    from vctool.evaluation.comparison import Compared

_BRANCH = click.Choice(["f", "v", "fv", "sims"])


@command(
    "compare",
    examples=(
        "vctool compare old/result.json new/result.json",
        "vctool compare out/result.json out/result.json --branch-a f --branch-b fv",
    ),
)
@click.argument("a", type=PATH, metavar="A.json")
@click.argument("b", type=PATH, metavar="B.json")
@click.option("--branch-a", type=_BRANCH, help="Branch of A.  [default: its model's own]")
@click.option("--branch-b", type=_BRANCH, help="Branch of B.  [default: its model's own]")
@click.option("--resamples", type=click.IntRange(min=1), default=2000, show_default=True, help="Bootstrap resamples for the intervals.")
@click.option("--permutations", type=click.IntRange(min=1), default=10_000, show_default=True, help="Random swaps for the p-values.")
@click.option("--resample", type=click.Choice(["queries", "clips"]), default="queries", show_default=True, help="What is swapped.")
@click.option("--level", type=float, default=0.95, show_default=True, help="Level of the intervals.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--show", type=click.IntRange(min=0), default=5, show_default=True, help="How many queries won and lost to show.")
@click.option("--report", type=PATH, metavar="DIR", help="Write comparison.json and comparison.md there, with all queries.")
@json_option
def compare(a: Path, b: Path, show: int, report: Path | None, as_json: bool, **settings: Any) -> None:
    """Compare two results of `vctool evaluate --report` on the same queries: B against A.

    Paired randomisation test, bootstrap interval of the difference, and the queries that B won and lost.
    """
    from vctool.evaluation.comparison import compare_results

    compared = compare_results(a, b, **settings)
    if report is not None:
        _write(compared, report)
    if as_json:
        print_json(compared.to_dict())
    else:
        _show(compared, show)


def _write(compared: Compared, folder: Path) -> None:
    from vctool.evaluation.report import compared_markdown

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "comparison.json").write_text(json.dumps(compared.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "comparison.md").write_text(compared_markdown(compared), encoding="utf-8")
    except OSError as problem:
        raise InputError(f"{folder}: the comparison cannot be written: {problem.strerror or problem}") from None
    say(f"wrote {folder / 'comparison.json'} and {folder / 'comparison.md'}")


def _show(compared: Compared, show: int) -> None:
    from rich.text import Text

    from vctool.evaluation.report import comparison_rows

    out = stdout()
    table = plain_table("metric", "A", "B", "B - A", f"{100 * compared.level:g} % interval", "p")
    for row in comparison_rows(compared):
        table.add_row(*(Text(cell) for cell in row))
    out.print(Text(f"A: {compared.name_a}\nB: {compared.name_b}"))
    out.print(table)
    out.print(Text(f"\n{compared.queries} queries: B won {len(compared.won)}, lost {len(compared.lost)}, {compared.equal} equal"))
    for what, queries in (("won", compared.won[:show]), ("lost", compared.lost[:show])):
        if queries:
            listed = plain_table(f"{what} by B", "right clip", "rank in A", "rank in B")
            for one in queries:
                listed.add_row(Text(one.text), Text(one.clip), f"{one.rank_a:g}", f"{one.rank_b:g}")
            out.print(listed)
    for note in compared.notes:
        say(f"note: {note}")
