"""`vctool index`: videos to a token store."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command
from vctool.cli.console import plain_table, print_json, say, stderr
from vctool.cli.options import PATH, STORE_DTYPES, device_option, json_option, provider_option, threads_option
from vctool.errors import SkippedInputsError, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from vctool.runtime.indexing import IndexProgress, IndexReport

_LINE_SECONDS = 10.0  # between lines of progress where there is no terminal


@command(
    "index",
    examples=(
        "vctool index holiday/ -o clips.npz --model MODEL",
        "vctool index film.mkv -o film.npz --model MODEL --segment 30",
        "vctool index talks/*.mp4 more.jsonl -o talks.npz --model MODEL --frames 24 --strict",
    ),
)
@click.argument("videos", nargs=-1, metavar="VIDEOS...")
@click.option("-o", "--output", required=True, metavar="CLIPS.npz|FOLDER/", help="The token store to write or to update.")
@click.option("--model", type=PATH, envvar="VCTOOL_MODEL", help="Model directory; needed unless the store exists already.")
@click.option("--frames", type=click.IntRange(min=1), help="Frames sampled from each clip.  [default: the model's own number]")
@click.option(
    "--sampling",
    type=click.Choice(["uniform", "fps", "scenes", "keyframes"]),
    default="uniform",
    show_default=True,
    help="Frames spread evenly, by rate (at most --frames), shared among scenes, or keyframes near even places (quick).",
)
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Rate of --sampling fps.")
@click.option(
    "--segment", type=float, metavar="SECONDS", help="Cut longer files into clips of this length.  [default: as the store has it]"
)
@click.option("--overlap", type=float, metavar="SECONDS", help="What neighbouring segments share.  [default: a fifth; 0 at scenes]")
@click.option("--at-scenes", is_flag=True, help="Let segments begin where scenes do.")
@click.option("--decoder", default="pyav", show_default=True, metavar="pyav|decord", help="What reads the video files.")
@click.option("--workers", type=click.IntRange(min=0), help="Decoding processes; 0 decodes in this one.  [default: one a core]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Clips encoded at once.  [default: 1 on a CPU, 8 on a GPU]")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="Seconds to decode one clip.")
@click.option(
    "--dtype", type=click.Choice(STORE_DTYPES), help="How tokens are stored.  [default: as the store has them, int8 in a new one]"
)
@click.option("--strict", is_flag=True, help="Exit with code 4 if any clip was skipped; the store is written all the same.")
@click.option("--rebuild", is_flag=True, help="Take nothing from the store that is there; it stays until the new one is complete.")
@click.option("--prune", is_flag=True, help="Drop clips from the store that are not among VIDEOS.")
@click.option("--delete", multiple=True, metavar="ID", help="Take this clip out of the store; repeatable, also without VIDEOS.")
@click.option("--shard-clips", type=click.IntRange(min=1), metavar="N", help="Write a folder of shards of N clips; later runs add shards.")
@device_option
@provider_option
@threads_option
@click.option("-q", "--quiet", is_flag=True, help="No progress and no talk; failures are still told.")
@json_option
def index(videos: tuple[str, ...], output: str, model: Path | None, strict: bool, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Build or update a token store from VIDEOS: files, folders, globs, or JSONL manifests.

    Clips that are in the store already and have not changed are not encoded again, and an interrupted run goes on where
    it stopped. Files that cannot be read are listed at the end.
    """
    if not videos and not settings["delete"]:
        raise UsageProblem("which videos?", "give files, folders, globs or JSONL manifests, or --delete ID")
    if not videos:
        _delete(Path(output), settings["delete"], quiet, as_json)
        return
    from vctool.runtime.indexing import index_videos
    from vctool.runtime.model import load_model

    how = {name: settings.pop(name) for name in ("device", "provider", "threads")}
    loaded = load_model(_model_of(Path(output), model), **how)
    with _progress(quiet) as tell:
        report = index_videos(list(videos), output, loaded, progress=tell, **settings)
    if as_json:
        print_json(_json(report))
    _tell_failures(report)
    if not quiet:
        _tell_end(report)
    if strict and report.failed:
        raise SkippedInputsError(f"{_clips(len(report.failed))} skipped (listed above)", f"{output} holds the other {report.clips}")


def _delete(output: Path, ids: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    from vctool.store.rewriting import delete_clips

    outcome = delete_clips(output, ids)
    if as_json:
        print_json(outcome.to_json())
    elif not quiet:
        say(f"{output}: {_clips(outcome.clips)} ({len(set(ids))} deleted)")


def _model_of(output: Path, model: Path | None) -> Path:
    if model is not None:
        return model
    from vctool.store.shards import is_store_folder

    if output.is_file() or is_store_folder(output):
        from vctool.runtime.search import find_model
        from vctool.store import open_store

        return find_model(open_store(output))
    raise UsageProblem("--model is needed to build a new store", "`vctool fetch --list` shows models to fetch")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[IndexProgress], None] | None]:
    """Progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""
    if quiet:
        yield None
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("clips  {task.fields[rate]}"), TimeRemainingColumn(), TextColumn("left"))
        with Progress(TextColumn("indexing"), *columns, console=stderr(), transient=True) as bar:
            task = bar.add_task("", total=None, rate="")

            def tell(state: IndexProgress) -> None:
                bar.update(task, completed=state.done, total=state.total, rate=f"{state.done / max(state.seconds, 1e-3):.1f}/s")

            yield tell


class _Lines:
    """Progress for logs."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_SECONDS

    def __call__(self, state: IndexProgress) -> None:
        from vctool.runtime.indexing import hours

        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_SECONDS
        rate = state.done / max(state.seconds, 1e-3)
        left = hours((state.total - state.done) / max(rate, 1e-3))
        say(f"{state.done} of {state.total} clips, {rate:.1f} clips/s, {left} left")


def _tell_failures(report: IndexReport) -> None:
    if not report.failed:
        return
    from rich.text import Text

    table = plain_table("skipped clip", "reason")
    for failed in report.failed:
        table.add_row(Text(failed.path), Text(failed.reason + (" (its earlier tokens stay in the store)" if failed.kept else "")))
    stderr().print(table)


def _tell_end(report: IndexReport) -> None:
    for note in report.notes:
        say(f"note: {note}")
    if report.damaged:
        shown = ", ".join(report.damaged[:3]) + (", …" if len(report.damaged) > 3 else "")
        say(f"note: {_clips(len(report.damaged))} damaged; what could be decoded is indexed: {shown}")
    parts = {
        "new": report.indexed,
        "from the interrupted run": report.resumed,
        "unchanged": report.reused,
        "not among the inputs (--prune drops them)": report.kept,
        "dropped": report.dropped,
        "deleted": report.deleted,
        "skipped": len(report.failed),
    }
    told = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    rate = f", {report.indexed / report.seconds:.1f} clips/s" if report.indexed and report.seconds else ""
    state = "" if report.written else ", up to date: nothing was written"
    say(f"{report.store}: {_clips(report.clips)} ({told}) in {report.seconds:.1f} s{rate}{state}")
    say(f'try: vctool query "a dog catching a frisbee" --index {shlex.quote(str(report.store))}')


def _json(report: IndexReport) -> dict[str, Any]:
    return {
        "schema": 1,
        "store": str(report.store),
        "clips": report.clips,
        "indexed": report.indexed,
        "resumed": report.resumed,
        "reused": report.reused,
        "kept": report.kept,
        "dropped": report.dropped,
        "deleted": report.deleted,
        "written": report.written,
        "failed": [{"id": f.id, "path": f.path, "reason": f.reason, "kept": f.kept} for f in report.failed],
        "damaged": report.damaged,
        "model": {"name": report.model.config.name, "sha256": report.model.fingerprint},
        "device": report.device,
        "encoder": report.encoder,
        "seconds": round(report.seconds, 3),
    }


def _clips(count: int) -> str:
    return f"{count} clip" if count == 1 else f"{count} clips"
