"""`vctool store`: the life cycle of token stores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vctool.cli.command import command, group
from vctool.cli.console import amount, print_json, say
from vctool.cli.options import PATH, STORE_DTYPES, json_option
from vctool.errors import UsageProblem

if TYPE_CHECKING:
    from vctool.store.output import Outcome, Output

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _Bytes(click.ParamType[int]):
    """A number of bytes: 500M, 1.5G."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).upper().removesuffix("B").removesuffix("I")
        unit = text[-1:] if text[-1:] in _SIZES else ""
        try:
            size = int(float(text.removesuffix(unit)) * _SIZES[unit])
        except (ValueError, OverflowError):
            size = 0
        if size < 1:
            self.fail(f"{value!r} is not a size: write 500M or 1.5G", param, ctx)
        return size


output_option = click.option("-o", "--output", required=True, metavar="CLIPS.npz|FOLDER/", help="A .npz file, or a folder of shards.")
force_option = click.option("--force", is_flag=True, help="Replace a store that is there; it stays until the new one is complete.")
dtype_option = click.option("--dtype", type=click.Choice(STORE_DTYPES), help="How tokens are stored.  [default: as they are]")
check_option = click.option("--check/--no-check", default=True, help="Check the checksums of what is copied.  [default: check]")
shard_clips_option = click.option("--shard-clips", type=click.IntRange(min=1), metavar="N", help="Write a folder, N clips a shard.")
shard_bytes_option = click.option("--shard-bytes", type=_Bytes(), metavar="SIZE", help="Write a folder, shards of up to SIZE (500M, 2G).")


@group(
    "store",
    examples=(
        "vctool store create -o pages/ --frames pages.npz --model-name colpali",
        "vctool store merge a.npz b.npz -o all.npz",
        "vctool store delete clips.npz old/talk.mp4",
    ),
)
def store() -> None:
    """Make, check and change token stores: one .npz file, or a folder of shards. Every change is one step: a crash leaves the old store."""


@command(
    "create",
    examples=(
        "vctool store create -o clips.npz --frames frames.npy --video video.npy --ids ids.txt",
        "vctool store create -o pages/ --frames pages.npz --meta pages.jsonl --normalise",
    ),
)
@output_option
@click.option("--frames", "frames", type=PATH, required=True, metavar="F.npz|F.npy", help="Frame tokens: [N, F, D], or [T, D] and offsets.")
@click.option("--video", type=PATH, metavar="V.npz|V.npy", help="Video tokens, in the same forms.  [default: none]")
@click.option("--frame-offsets", type=PATH, metavar="O.npy", help="Clip i owns rows offsets[i] to offsets[i+1] of a [T, D] .npy.")
@click.option("--video-offsets", type=PATH, metavar="O.npy", help="The same for --video.")
@click.option("--times", type=PATH, metavar="T.npy", help="Second of each frame token, in the tokens' shape without D.")
@click.option("--video-times", type=PATH, metavar="T.npy", help="The same for --video; NaN for none.")
@click.option("--ids", type=PATH, metavar="FILE", help="Clip ids, one a line, or a JSON list.  [default: from --meta, else numbers]")
@click.option("--meta", type=PATH, metavar="FILE.jsonl", help="A JSON object for each clip; `path` and `id` in it are taken.")
@click.option("--model-name", metavar="NAME", help="What made the tokens; stores of different models do not mix.")
@click.option("--model", type=PATH, metavar="DIR", help="The model directory that made the tokens, to ask with texts.")
@click.option("--dtype", type=click.Choice(STORE_DTYPES), default="int8", show_default=True, help="How tokens are stored.")
@click.option("--normalise", is_flag=True, help="L2-normalise the tokens first.")
@shard_clips_option
@shard_bytes_option
@force_option
@json_option
def create(
    output: str,
    frames: Path,
    video: Path | None,
    as_json: bool,
    shard_clips: int | None,
    shard_bytes: int | None,
    force: bool,
    **given: Any,
) -> None:
    """Build a store from token arrays that any model made. Tokens must be float16 or float32 rows of unit length."""

    def run() -> Outcome:
        from vctool.store.creating import create_store
        from vctool.store.token_files import read_array, read_ids, read_metas, read_tokens

        place = _output(output, shard_clips, shard_bytes, force)
        place.check()
        unit: bool = given["normalise"]
        frame_rows = read_tokens(frames, offsets=read_array(given["frame_offsets"]), times=read_array(given["times"]), normalise=unit)
        video_rows = None
        if video is not None:
            offsets, times = read_array(given["video_offsets"]), read_array(given["video_times"])
            video_rows = read_tokens(video, branch="video", offsets=offsets, times=times, normalise=unit)
        ids = None if given["ids"] is None else read_ids(given["ids"])
        metas, paths = None, None
        if given["meta"] is not None:
            metas, paths, named = read_metas(given["meta"], len(frame_rows))
            ids = named if ids is None and all(named) else ids
        model = _model_entry(given["model"], given["model_name"], place)
        return create_store(place, frame_rows, video_rows, ids=ids, paths=paths, metas=metas, model=model, dtype=given["dtype"])

    _tell(run, as_json)


@command("verify", examples=("vctool store verify clips.npz", "vctool store verify clips/ --json"))
@click.argument("path", type=PATH, metavar="STORE")
@json_option
def verify(path: Path, as_json: bool) -> None:
    """Recompute every checksum of a store. Exit code 3 if one does not match."""

    def run() -> Outcome:
        from vctool.store import open_store
        from vctool.store.output import Outcome

        with open_store(path) as opened:
            opened.verify()
        return Outcome.of(path, ["all checksums match"])

    _tell(run, as_json)


@command("compact", examples=("vctool store compact clips/", "vctool store compact clips/ --shard-clips 100000"))
@click.argument("path", type=PATH, metavar="STORE")
@click.option("--shard-clips", type=click.IntRange(min=1), metavar="N", help="A full shard has N clips.")
@click.option("--shard-bytes", type=_Bytes(), metavar="SIZE", help="A full shard has SIZE.  [default: 1G]")
@check_option
@json_option
def compact(path: Path, shard_clips: int | None, shard_bytes: int | None, check: bool, as_json: bool) -> None:
    """Join neighbouring shards that are less than half full, and remove what killed writers left behind."""

    def run() -> Outcome:
        from vctool.store.folder import ShardSize
        from vctool.store.rewriting import compact

        return compact(path, ShardSize(shard_clips, shard_bytes), check=check)

    _tell(run, as_json)


@command("merge", examples=("vctool store merge a.npz b.npz -o all.npz", "vctool store merge a/ b/ -o all/ --on-duplicate last"))
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="STORES...")
@output_option
@click.option(
    "--on-duplicate",
    type=click.Choice(["refuse", "first", "last"]),
    default="refuse",
    show_default=True,
    help="What to do with an id that is in two stores.",
)
@dtype_option
@shard_clips_option
@shard_bytes_option
@force_option
@check_option
@json_option
def merge(
    paths: tuple[Path, ...],
    output: str,
    on_duplicate: str,
    dtype: str | None,
    shard_clips: int | None,
    shard_bytes: int | None,
    force: bool,
    check: bool,
    as_json: bool,
) -> None:
    """One store of the clips of several, which must be of one model."""

    def run() -> Outcome:
        from vctool.store.rewriting import merge

        place = _output(output, shard_clips, shard_bytes, force)
        return merge(paths, place, dtype=cast(Any, dtype), on_duplicate=cast(Any, on_duplicate), check=check)

    _tell(run, as_json)


@command("split", examples=("vctool store split clips.npz -o clips/ --clips 100000", "vctool store split clips.npz -o clips/ --bytes 500M"))
@click.argument("path", type=PATH, metavar="STORE")
@click.option("-o", "--output", required=True, metavar="FOLDER/", help="The folder of shards to write.")
@click.option("--clips", type=click.IntRange(min=1), metavar="N", help="Clips a shard.")
@click.option("--bytes", "size", type=_Bytes(), metavar="SIZE", help="Bytes a shard (500M, 2G).")
@force_option
@check_option
@json_option
def split(path: Path, output: str, clips: int | None, size: int | None, force: bool, check: bool, as_json: bool) -> None:
    """Copy a store into a folder of shards, tokens bit for bit."""
    if clips is None and size is None:
        raise UsageProblem("how large should a shard be?", "give --clips N or --bytes SIZE")

    def run() -> Outcome:
        from vctool.store.rewriting import split

        return split(path, _output(output, clips, size, force), check=check)

    _tell(run, as_json)


@command("convert", examples=("vctool store convert clips.npz -o small.npz --dtype int8", "vctool store convert clips/ -o clips.npz"))
@click.argument("path", type=PATH, metavar="STORE")
@output_option
@dtype_option
@shard_clips_option
@shard_bytes_option
@force_option
@check_option
@json_option
def convert(
    path: Path, output: str, dtype: str | None, shard_clips: int | None, shard_bytes: int | None, force: bool, check: bool, as_json: bool
) -> None:
    """Write a store anew: in another precision, as one file, as a folder, or a file of another make as ours."""

    def run() -> Outcome:
        from vctool.store.rewriting import convert

        return convert(path, _output(output, shard_clips, shard_bytes, force), dtype=cast(Any, dtype), check=check)

    _tell(run, as_json)


@command("delete", examples=("vctool store delete clips.npz old/talk.mp4 old/party.mp4", "vctool store delete clips/ --ids gone.txt"))
@click.argument("path", type=PATH, metavar="STORE")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--ids", "file", type=PATH, metavar="FILE", help="Ids to delete, one a line, or a JSON list.")
@click.option("--missing-ok", is_flag=True, help="Ids that are not in the store are no error.")
@check_option
@json_option
def delete(path: Path, ids: tuple[str, ...], file: Path | None, missing_ok: bool, check: bool, as_json: bool) -> None:
    """Take clips out of a store. The others keep their ids and their order; nothing of the deleted ones is left in it."""
    if not ids and file is None:
        raise UsageProblem("which clips?", "give their ids, or --ids FILE")

    def run() -> Outcome:
        from vctool.store.rewriting import delete_clips
        from vctool.store.token_files import read_ids

        return delete_clips(path, [*ids, *(read_ids(file) if file is not None else ())], missing_ok=missing_ok, check=check)

    _tell(run, as_json)


for one in (create, verify, compact, merge, split, convert, delete):
    store.add_command(one)


def _output(text: str, clips: int | None, size: int | None, force: bool) -> Output:
    """A folder if a size of shards is given, the name ends in / or is one's; else a file."""
    from vctool.store.folder import ShardSize
    from vctool.store.output import Output

    path = Path(text)
    folder = clips is not None or size is not None or text.endswith(("/", "\\")) or path.is_dir()
    return Output(path, ShardSize(clips, size) if folder else None, replace=force)


def _model_entry(folder: Path | None, name: str | None, place: Output) -> dict[str, Any] | str | None:
    if folder is None:
        return name
    if name is not None:
        raise UsageProblem("--model and --model-name say the same thing", "give one of them")
    from vctool.runtime.index_plan import model_entry
    from vctool.runtime.model_directory import ModelDirectory

    inside = place.path / "shard" if place.shards is not None else place.path
    return model_entry(ModelDirectory.open(folder), inside)


def _tell(run: Callable[[], Outcome], as_json: bool) -> None:
    began = time.monotonic()
    outcome = run()
    if as_json:
        print_json(outcome.to_json())
        return
    for note in outcome.notes:
        say(f"note: {note}")
    shards = "" if outcome.shards is None else f" in {outcome.shards} shard{'' if outcome.shards == 1 else 's'}"
    clips = f"{outcome.clips:,} clip{'' if outcome.clips == 1 else 's'}"
    say(f"{outcome.path}: {clips}{shards}, {outcome.dtype}, {amount(outcome.bytes)} ({time.monotonic() - began:.1f} s)")
