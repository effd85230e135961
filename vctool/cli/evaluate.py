"""`vctool evaluate`: metrics of a model, a store or a bare similarity matrix, with the protocol they were made under."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command
from vctool.cli.console import plain_table, print_json, say, stdout
from vctool.cli.counting import counted
from vctool.cli.options import PATH, device_option, json_option, provider_option, threads_option
from vctool.errors import SkippedInputsError, UsageProblem

if TYPE_CHECKING:
    from rich.table import Table

    from vctool.data import Split
    from vctool.evaluation.evaluate import Bank, Settings
    from vctool.evaluation.result import Evaluation, Line

_SHORT = {"geometric_mean": "GM"}


@command(
    "evaluate",
    examples=(
        "vctool evaluate MODEL --data msrvtt-1ka --annotations msrvtt/ --videos msrvtt/videos --report out/",
        "vctool evaluate MODEL --data captions.jsonl --json",
        "vctool evaluate --index clips.npz --data captions.jsonl --split test",
        "vctool evaluate --sims scores.npy --qrels right.tsv --min-r1 45",
    ),
)
@click.argument("model", type=PATH, required=False, metavar="[MODEL]")
@click.option("--data", metavar="NAME|MANIFEST|FOLDER", help="A benchmark's name, a JSONL manifest, or a folder with corpus.jsonl.")
@click.option("--annotations", type=PATH, metavar="DIR", help="Where the benchmark's own annotation files lie.")
@click.option("--videos", type=PATH, metavar="DIR", help="Where the videos lie.  [default: the manifest's paths]")
@click.option("--split", help="Which split.  [default: the benchmark's test split, or all of a manifest]")
@click.option("--captions", type=click.Choice(["all", "paragraph", "one"]), default="all", help="What a manifest's captions are.")
@click.option("--encoding", default="utf-8", show_default=True, help="Text encoding of the annotation files.")
@click.option("--index", "index", type=PATH, metavar="CLIPS.npz", help="Score this token store instead of indexing the videos.")
@click.option("--keep", type=PATH, metavar="CLIPS.npz", help="Keep the token store made from the videos here.")
@click.option("--sims", type=PATH, metavar="S.npy", help="Score a bare similarity matrix: queries by clips, higher is better.")
@click.option("--qrels", type=PATH, metavar="Q.tsv", help="Right clips of the matrix's queries.  [default: query i, column i]")
@click.option("--query-ids", type=PATH, metavar="FILE", help="Ids of the matrix's rows, one a line.  [default: 0, 1, …]")
@click.option("--clip-ids", type=PATH, metavar="FILE", help="Ids of the matrix's columns, one a line.  [default: 0, 1, …]")
@click.option("--branch", "branches", multiple=True, type=click.Choice(["f", "v", "fv"]), help="Repeatable.  [default: all the model has]")
@click.option("--frames", type=click.IntRange(min=1), help="Frames sampled from each clip.  [default: the model's own number]")
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes.  [default: one a core]")
@click.option("--post", "postprocess", multiple=True, metavar="dsl|qbnorm|sinkhorn", help="Add labelled lines with this post-processing.")
@click.option("--bank", type=PATH, metavar="FILE", help="QB-Norm's earlier queries: texts (.txt, .jsonl) or their scores (.npy).")
@click.option("--dsl-temperature", type=float, default=100.0, show_default=True)
@click.option("--sinkhorn-temperature", type=float, default=100.0, show_default=True)
@click.option("--qbnorm-beta", type=float, default=20.0, show_default=True)
@click.option("--resamples", type=click.IntRange(min=0), default=2000, show_default=True, help="Bootstrap resamples; 0 for no intervals.")
@click.option("--resample", type=click.Choice(["queries", "clips"]), default="queries", show_default=True, help="What is resampled.")
@click.option("--level", type=float, default=0.95, show_default=True, help="Level of the intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--v2t/--no-v2t", default=True, help="Video-to-text in both published forms.  [default: yes]")
@click.option("--report", type=PATH, metavar="DIR", help="Write result.json (ranks per query), report.md and report.html there.")
@click.option("--gallery", type=click.IntRange(min=0), default=8, show_default=True, help="Worst queries that a report shows.")
@click.option("--min-r1", type=click.FloatRange(0, 100), help="Exit with code 3 if text-to-video R@1 (percent) is lower.")
@click.option("--strict", is_flag=True, help="Exit with code 4 if any clip was missing or broken; the rest is evaluated all the same.")
@click.option("--per-query", is_flag=True, help="With --json: add every query's rank, as `vctool compare` needs it.")
@device_option
@provider_option
@threads_option
@click.option("-q", "--quiet", is_flag=True, help="No progress and no talk.")
@json_option
def evaluate(
    model: Path | None,
    data: str | None,
    sims: Path | None,
    report: Path | None,
    min_r1: float | None,
    strict: bool,
    per_query: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Metrics of MODEL on a benchmark or manifest, of a token store, or of somebody's similarity matrix.

    All branches of the model stand side by side. Post-processing is reported in lines of its own, never mixed in.
    """
    split = _split(data, sims, options)
    if sims is not None:
        evaluation = _matrix(sims, split, model, options)
    elif split is None:
        raise UsageProblem("what should be evaluated?", "give MODEL --data NAME_OR_MANIFEST, or --sims S.npy")
    else:
        evaluation = _model(model, split, options, quiet)
    if report is not None:
        from vctool.evaluation.report import write_report

        with counted("drawing", "clips", quiet) as tell:
            written = write_report(evaluation, report, workers=1 if options["workers"] is None else options["workers"], progress=tell)
        if not quiet:
            say(f"wrote {', '.join(str(path) for path in written)}")
    if as_json:
        print_json(evaluation.to_dict() if per_query else evaluation.summary())
    else:
        _show(evaluation)
    if min_r1 is not None:
        evaluation.require_r1(min_r1)
    if strict and split is not None and evaluation.protocol.clips < len(split.clips):
        lacking = len(split.clips) - evaluation.protocol.clips
        raise SkippedInputsError(f"{lacking} of {len(split.clips)} clips were left out", "`vctool data check` lists them")


def _split(data: str | None, sims: Path | None, options: dict[str, Any]) -> Split | None:
    if data is None:
        return None
    if sims is not None and options["qrels"] is not None:
        raise UsageProblem("--data and --qrels both say which clips are right", "give one of them")
    from vctool.data import load_split

    keys = ("annotations", "videos", "encoding")
    return load_split(data, options["split"], policy=options["captions"], **{key: options[key] for key in keys})


def _matrix(sims: Path, split: Split | None, model: Path | None, options: dict[str, Any]) -> Evaluation:
    from vctool.evaluation.evaluate import evaluate_matrix
    from vctool.evaluation.matrix_files import matrix_for_split, matrix_from_files

    for given, name in ((model, "MODEL"), (options["index"], "--index"), (options["branches"], "--branch"), (options["keep"], "--keep")):
        if given:
            raise UsageProblem(f"--sims scores a finished matrix: {name} has no place beside it")
    if split is not None:
        matrix = matrix_for_split(sims, split)
    else:
        ids = {"query_ids_path": options["query_ids"], "clip_ids_path": options["clip_ids"]}
        matrix = matrix_from_files(sims, options["qrels"], encoding=options["encoding"], **ids)
    return evaluate_matrix(matrix, _settings(options), _bank(options))


def _model(model: Path | None, split: Split, options: dict[str, Any], quiet: bool) -> Evaluation:
    from vctool.evaluation.evaluate_model import evaluate_store, evaluate_videos
    from vctool.runtime.model import load_model

    for name in ("qrels", "query_ids", "clip_ids"):
        if options[name] is not None:
            raise UsageProblem(f"--{name.replace('_', '-')} belongs to --sims")
    how = {name: options[name] for name in ("device", "provider", "threads")}
    common = {"branches": options["branches"], "settings": _settings(options), "bank": _bank(options)}
    if options["index"] is not None:
        from vctool.runtime.search import find_model
        from vctool.store import open_store

        for name in ("keep", "frames"):
            if options[name] is not None:
                raise UsageProblem(f"--{name} has no place beside --index: the store is finished")
        with open_store(options["index"]) as store, counted("scoring", "queries", quiet) as tell:
            return evaluate_store(split, store, load_model(model or find_model(store), **how), progress=tell, **common)
    if model is None:
        raise UsageProblem("which model?", "give a model directory, or a token store with --index")
    loaded = load_model(model, **how)
    with counted("indexing", "clips", quiet) as tell:
        return evaluate_videos(
            split,
            loaded,
            options["videos"],
            keep_store=options["keep"],
            frames=options["frames"],
            workers=options["workers"],
            indexing=None if tell is None else lambda state: tell(state.done, state.total),
            **common,
        )


def _settings(options: dict[str, Any]) -> Settings:
    from vctool.evaluation.evaluate import Settings

    names = ("resamples", "level", "seed", "resample", "postprocess", "dsl_temperature", "sinkhorn_temperature", "qbnorm_beta")
    return Settings(**{name: options[name] for name in (*names, "v2t", "gallery")})


def _bank(options: dict[str, Any]) -> Bank | None:
    path: Path | None = options["bank"]
    if path is None:
        return None
    from vctool.evaluation.evaluate import Bank
    from vctool.evaluation.matrix_files import read_matrix, texts_from_file

    if "qbnorm" not in options["postprocess"]:
        raise UsageProblem("--bank is for QB-Norm only", "add --post qbnorm")
    if path.suffix.lower() in (".npy", ".npz"):
        return Bank(scores=read_matrix(path)[0])
    return Bank(texts=tuple(texts_from_file(path, options["encoding"])))


def _show(evaluation: Evaluation) -> None:
    """Tables that fit a terminal of 80 columns; everything else is in --json and --report."""
    from rich.text import Text

    from vctool.evaluation.result import TASKS

    out = stdout()
    out.print(Text(f"{evaluation.protocol.name}: {evaluation.protocol.queries:,} queries, {evaluation.protocol.clips:,} clips"))
    for task, meaning in TASKS.items():
        lines = [line for line in evaluation.lines if line.task == task]
        if lines:
            out.print(Text(f"\n{task}: {meaning}", overflow="fold"))
            out.print(_metric_table([(line.branch, line) for line in lines]))
    plain = [(line.branch, line) for line in evaluation.lines if line.task == "t2v" and line.intervals]
    if plain:
        out.print(Text(f"\n{100 * float(evaluation.settings['level']):g} % intervals of t2v"))
        out.print(_interval_table(plain))
    if evaluation.postprocessed:
        out.print(Text("\nt2v with post-processing: not comparable with the above"))
        out.print(_metric_table([(f"{post.name} {post.line.branch}", post.line) for post in evaluation.postprocessed]))
    for post in {post.name: post for post in evaluation.postprocessed}.values():
        say(f"note: {post.label}: {post.warning}")
    for note in (*evaluation.protocol.departures, *evaluation.notes):
        say(f"note: {note}")


def _metric_table(lines: list[tuple[str, Line]]) -> Table:
    from vctool.evaluation.report import metric_rows
    from vctool.metrics import METRIC_NAMES

    table = plain_table("", *(_SHORT.get(name, name) for name in METRIC_NAMES))
    table.padding = (0, 1, 0, 0)  # ten metrics in 80 columns
    for name, line in lines:
        for _, branch, *cells in metric_rows([line]):
            table.add_row({line.branch: name, "optimistic": " opt.", "pessimistic": " pess."}[branch], *cells)
    return table


def _interval_table(lines: list[tuple[str, Line]]) -> Table:
    from vctool.evaluation.report import number

    names = ("R@1", "R@5", "R@10", "MnR", "nDCG@10")
    table = plain_table("", *names)
    for branch, line in lines:
        table.add_row(branch, *("–".join(number(name, bound) for bound in line.intervals[name]) for name in names))
    return table
