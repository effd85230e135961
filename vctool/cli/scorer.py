"""The options that choose what scores a store, and the scorer they choose."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vctool.cli.console import say

if TYPE_CHECKING:
    from vctool.scoring import Scorer

    _ParamType = click.ParamType[int]
else:
    _ParamType = click.ParamType  # older versions of click have nothing to fill in

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}

Command = TypeVar("Command", bound=Callable[..., Any])


class Size(_ParamType):
    """Bytes, as a number with or without a unit: 500MB, 4GiB, 2e9."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmg]i?)?b?", str(value).strip().lower())
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a size; write 500MB or 4GB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2] or ""])


def scorer_options(command: Command) -> Command:
    """`--scorer` and `--memory`."""
    memory = click.option("--memory", type=Size(), metavar="SIZE", help="What --scorer graph may take on its device.  [default: 2GiB]")
    scorer = click.option(
        "--scorer",
        type=click.Choice(["auto", "kernel", "graph"]),
        default="auto",
        show_default=True,
        envvar="VCTOOL_SCORER",
        help="What compares tokens: the CPU's kernel, or a graph on --device; auto takes the graph with --device cuda.",
    )
    return scorer(memory(command))


def chosen_scorer(scorer: str, memory: int | None, settings: dict[str, Any]) -> Scorer:
    """The scorer for these options. settings: `device` and `threads` of the command.

    Raises VctoolError if the graph was asked for on a device that cannot be had.
    """
    device = settings.get("device", "auto")
    if scorer == "kernel" or (scorer == "auto" and device != "cuda"):
        from vctool.scoring import batch_scores

        return batch_scores
    from vctool.runtime.graph_scorer import MEMORY, GraphScorer

    graph = GraphScorer(device, memory=MEMORY if memory is None else memory, threads=settings.get("threads"))
    if graph.note:
        say(f"warning: {graph.note}")
    return graph
