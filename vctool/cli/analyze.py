"""`vctool analyze`: why a model scores what it scores, by length, motion, pads, branch and failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command, group
from vctool.cli.console import print_json, say, stdout
from vctool.cli.counting import counted
from vctool.cli.options import PATH, device_option, json_option, threads_option
from vctool.errors import UsageProblem

if TYPE_CHECKING:
    from vctool.evaluation.analysis import Analysis, Draws, Material, Progress

    Analyse = Callable[[Material, Draws, Progress | None], Analysis]

_DATA = "--index clips.npz --data captions.jsonl --report out/"


@group("analyze", examples=(f"vctool analyze length {_DATA}", f"vctool analyze branches {_DATA}"))
def analyze() -> None:
    """Why a model scores what it scores. Each analysis writes a folder: numbers (JSON), a page (HTML) and its plots (PNG)."""


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every analysis: what is scored, against what, and where the report goes."""
    options = (
        click.argument("model", type=PATH, required=False, metavar="[MODEL]"),
        click.option("--data", required=True, metavar="NAME|MANIFEST|FOLDER", help="A benchmark's name, a JSONL manifest, or judgements."),
        click.option("--index", type=PATH, metavar="CLIPS.npz", help="Analyse this token store instead of indexing the videos."),
        click.option("--report", type=PATH, metavar="DIR", help="Write analysis.json, report.html and the plots there."),
        click.option("--annotations", type=PATH, metavar="DIR", help="Where the benchmark's own annotation files lie."),
        click.option("--videos", type=PATH, metavar="DIR", help="Where the videos lie.  [default: the store's or manifest's paths]"),
        click.option("--split", help="Which split.  [default: the benchmark's test split, or all of a manifest]"),
        click.option("--captions", type=click.Choice(["all", "paragraph", "one"]), default="all", help="What a manifest's captions are."),
        click.option("--encoding", default="utf-8", show_default=True, help="Text encoding of the annotation files."),
        click.option("--keep", type=PATH, metavar="CLIPS.npz", help="Keep the token store made from the videos here."),
        click.option("--frames", type=click.IntRange(min=1), help="Frames sampled from each clip.  [default: the model's own number]"),
        click.option("--workers", type=click.IntRange(min=0), help="Decoding processes.  [default: one a core]"),
        click.option("--branch", type=click.Choice(["f", "v", "fv"]), help="Which scores.  [default: the model's own]"),
        click.option("--resamples", type=click.IntRange(min=1), default=2000, show_default=True, help="Bootstrap resamples."),
        click.option("--level", type=float, default=0.95, show_default=True, help="Level of the intervals."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of whatever is drawn."),
        device_option,
        threads_option,
        click.option("-q", "--quiet", is_flag=True, help="No progress and no talk."),
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@command("length", examples=(f"vctool analyze length {_DATA}",))
@_shared
def length(**options: Any) -> None:
    """Metrics by query length, and the length at which soft query expansion turns from help to harm."""
    from vctool.evaluation.analysis_length import analyse_length

    _run(options, analyse_length)


@command("motion", examples=(f"vctool analyze motion {_DATA}", f"vctool analyze motion {_DATA} --little 0.02 --high 0.1"))
@click.option("--little", type=float, default=0.01, show_default=True, help="Share of the picture that changes, from which a clip moves.")
@click.option("--high", type=float, default=0.05, show_default=True, help="Share of the picture from which motion is high.")
@_shared
def motion(little: float, high: float, **options: Any) -> None:
    """Metrics by motion of the right clip (static, little, high), measured on its frames."""
    from vctool.evaluation.analysis_motion import analyse_motion
    from vctool.evaluation.motion import Thresholds

    limits = Thresholds(little, high)
    _run(options, lambda material, draws, tell: analyse_motion(material, draws, limits, workers=_workers(options), progress=tell))


@command("pads", examples=(f"vctool analyze pads {_DATA}", f"vctool analyze pads {_DATA} --synonyms mine.txt"))
@click.option("--clusters", type=click.IntRange(min=1), default=8, show_default=True, help="Clusters of pad vectors.")
@click.option("--synonyms", type=PATH, metavar="FILE", help="Synonyms, a group a line, commas between.  [default: a short list of ours]")
@click.option("--attention/--no-attention", default=True, help="Attention of pads over words, from the PyTorch model.  [default: yes]")
@_shared
def pads(clusters: int, synonyms: Path | None, attention: bool, **options: Any) -> None:
    """What the pads learn: where they look, what they resemble, and how they compare with explicit synonyms."""
    from vctool.evaluation.analysis_pads import analyse_pads
    from vctool.evaluation.synonyms import read_synonyms

    groups = read_synonyms(synonyms)
    _run(
        options, lambda material, draws, tell: analyse_pads(material, draws, groups, clusters=clusters, attention=attention, progress=tell)
    )


@command("branches", examples=(f"vctool analyze branches {_DATA}",))
@click.option("--examples", type=click.IntRange(min=0), default=6, show_default=True, help="Example clips for each branch.")
@_shared
def branches(examples: int, **options: Any) -> None:
    """Where the frame branch and the video branch agree, and clips that only one of them finds."""
    from vctool.evaluation.analysis_branches import analyse_branches

    _run(
        options,
        lambda material, draws, tell: analyse_branches(material, draws, examples=examples, workers=_workers(options), progress=tell),
    )


@command("failures", examples=(f"vctool analyze failures {_DATA} --count 50",))
@click.option("--count", type=click.IntRange(min=1), default=20, show_default=True, help="Worst queries to show.")
@_shared
def failures(count: int, **options: Any) -> None:
    """The worst queries, with frames of the right clip and of what was ranked above it, and the words that lifted it."""
    from vctool.evaluation.analysis_failures import analyse_failures

    _run(options, lambda material, draws, tell: analyse_failures(material, draws, count=count, workers=_workers(options), progress=tell))


for _one in (length, motion, pads, branches, failures):
    analyze.add_command(_one)


def _run(options: dict[str, Any], analyse: Analyse) -> None:
    from vctool.evaluation.analysis import Draws, analysis_document, write_analysis

    draws = Draws(options["resamples"], options["level"], options["seed"])
    quiet = options["quiet"]
    with _material(options) as material:
        with counted("analysing", "done", quiet) as tell:
            found = analyse(material, draws, tell)
        document = analysis_document(found, material, draws.seed)
        if options["report"] is not None:
            written = write_analysis(found, document, material, options["report"])
            if not quiet:
                say(f"wrote {', '.join(str(path) for path in written)}")
    if options["as_json"]:
        print_json(document)
        return
    from rich.text import Text

    out = stdout()
    out.print(Text(found.title))
    for line in found.findings:
        out.print(Text(f"- {line}"))
    for note in document["notes"]:
        say(f"note: {note}")


@contextmanager
def _material(options: dict[str, Any]) -> Iterator[Material]:
    from vctool.data import load_split
    from vctool.evaluation.analysis import Material
    from vctool.runtime.model import load_model

    keys = ("annotations", "videos", "encoding")
    split = load_split(options["data"], options["split"], policy=options["captions"], **{key: options[key] for key in keys})
    how = {"device": options["device"], "threads": options["threads"]}
    model, index = options["model"], options["index"]
    if index is not None:
        from vctool.runtime.search import find_model
        from vctool.store import open_store

        for name in ("keep", "frames"):
            if options[name] is not None:
                raise UsageProblem(f"--{name} has no place beside --index: the store is finished")
        with open_store(index) as store:
            loaded = load_model(model or find_model(store), **how)
            yield Material.of(split, store, loaded, branch=options["branch"], videos=options["videos"])
        return
    if model is None:
        raise UsageProblem("what should be analysed?", "give a token store with --index, or a model directory")
    from vctool.evaluation.evaluate_model import indexed

    loaded = load_model(model, **how)
    kept = {"keep_store": options["keep"], "frames": options["frames"], "workers": options["workers"]}
    with indexed(split, loaded, options["videos"], **kept) as (store, why_missing):
        yield Material.of(split, store, loaded, branch=options["branch"], why_missing=why_missing)


def _workers(options: dict[str, Any]) -> int:
    return 1 if options["workers"] is None else int(options["workers"])
