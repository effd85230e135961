"""The command line. Each command is a module of its own, imported when it runs: `--help` costs click alone."""

from __future__ import annotations

import click

from vctool import __version__
from vctool.cli.command import Group, LazyCommand

# name: (module, attribute, one line of help), in the order of `vctool --help`.
COMMANDS: dict[str, LazyCommand] = {
    "demo": ("vctool.cli.demo", "demo", "The whole job, offline, on clips and a model that ship with the package."),
    "fetch": ("vctool.cli.fetch", "fetch", "Write a model directory to start from."),
    "index": ("vctool.cli.index", "index", "Build or update a token store from videos."),
    "query": ("vctool.cli.query", "query", "Find clips by a sentence, and see why."),
    "store": ("vctool.cli.store", "store", "Make, check, change, merge, split and convert token stores."),
    "train": ("vctool.cli.train", "train", "Train a model from a recipe."),
    "evaluate": ("vctool.cli.evaluate", "evaluate", "Metrics of a model, a store or a similarity matrix."),
    "compare": ("vctool.cli.compare", "compare", "Is result B better than result A? A paired test."),
    "analyze": ("vctool.cli.analyze", "analyze", "Why a model scores what it scores: plots and numbers."),
    "ablate": ("vctool.cli.ablate", "ablate", "Train and measure a grid of variants, with seeds and intervals."),
    "data": ("vctool.cli.data", "data", "Benchmarks: what is known of them, and what of them is here."),
    "export": ("vctool.cli.export", "export", "Write a model's ONNX graphs, proved against PyTorch."),
    "verify": ("vctool.cli.verify", "verify", "Are a model's graphs what PyTorch computes?"),
    "info": ("vctool.cli.info", "info", "Say what a path is: model directory, token store, video."),
    "doctor": ("vctool.cli.doctor", "doctor", "Say what this machine can do, and how to mend what it cannot."),
    "completion": ("vctool.cli.completion", "completion", "Print the completion script for a shell."),
}


@click.group(
    "vctool",
    cls=Group,
    lazy=COMMANDS,
    examples=(
        "vctool index holiday/ -o clips.npz --model MODEL",
        'vctool query "a dog catching a frisbee" --index clips.npz',
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="vctool %(version)s")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colour: auto follows NO_COLOR and the terminal.",
)
def cli(color: str) -> None:
    """Find videos by what is said about them (Video-ColBERT)."""
    # Read by `console.py`, which knows the context.
    del color


def main() -> None:
    """The entry point of `vctool` and `python -m vctool`."""
    cli.main(prog_name="vctool")
