"""`vctool demo`: the whole job, offline, on what ships with the package."""

from __future__ import annotations

import time
from pathlib import Path

import click

from vctool.cli.command import command
from vctool.cli.console import say, stdout
from vctool.cli.options import PATH


@command("demo", examples=("vctool demo", "vctool demo --out /tmp/try"))
@click.option("--out", type=PATH, default=Path("vctool-demo"), show_default=True, metavar="DIR", help="Where clips, model and index go.")
@click.option("-k", type=click.IntRange(min=1), default=3, show_default=True, help="Clips shown for each query.")
def demo(out: Path, k: int) -> None:
    """Index the bundled clips with the bundled model and ask four questions. Needs no network, no GPU and no torch."""
    from rich.text import Text

    from vctool.cli.query import show
    from vctool.demo.show import QUERIES, prepare_model, unpack_clips
    from vctool.runtime.indexing import index_videos
    from vctool.runtime.model import load_model
    from vctool.runtime.search import search_all

    began = time.perf_counter()
    clips, model, store = out / "clips", out / "model", out / "clips.npz"
    say(f"1. {unpack_clips(clips)} captioned clips -> {clips}")
    say(f"2. model (trained heads from this package, frozen towers from two PyPI packages) -> {model}")
    prepare_model(model, say)
    say(f"3. indexing -> {store}")
    loaded = load_model(model)
    report = index_videos([str(clips / "captions.jsonl")], store, loaded)
    say(f"   {report.clips} clips, {report.seconds:.1f} s")
    say("4. searching\n")
    console = stdout()
    for (text, why), result in zip(QUERIES, search_all([text for text, _ in QUERIES], store, loaded, k), strict=True):
        console.print(Text.assemble(("vctool query ", "dim"), (f'"{text}"', "bold"), (f"  ({why})", "dim")))
        show(result, titled=False, explain=False)
        console.print()
    say(f"done in {time.perf_counter() - began:.0f} s. Now your own videos:\n")
    say(f'  vctool query "a snowman melts away" --index {store}')
    say("  vctool fetch offline my-model                 # a model for real videos, no download")
    say("  vctool index ~/Videos -o my-clips.npz --model my-model")
    say('  vctool query "children playing in the snow" --index my-clips.npz --explain')
