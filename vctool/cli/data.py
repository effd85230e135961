"""`vctool data`: which benchmarks are known, and what of one is on this disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vctool.cli.command import command, group
from vctool.cli.console import amount, plain_table, print_json, stdout
from vctool.cli.counting import counted
from vctool.cli.options import PATH, json_option
from vctool.errors import InputError, SkippedInputsError, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from vctool.data import SplitCheck

_SHOWN = 5  # missing and broken clips shown; --json has them all


@group(
    "data",
    examples=(
        "vctool data list",
        "vctool data check msrvtt-1ka --annotations msrvtt/ --videos msrvtt/videos",
        "vctool data manifest msrvtt-9k --annotations msrvtt/ --videos msrvtt/videos -o msrvtt-9k",
    ),
)
def data() -> None:
    """Benchmarks and manifests: what is known of them, and what of them is here."""


@command("check", examples=("vctool data check msvd --annotations msvd/ --videos msvd/videos", "vctool data check captions.jsonl"))
@click.argument("name", metavar="NAME|MANIFEST|FOLDER")
@click.option("--annotations", type=PATH, metavar="DIR", help="Where the benchmark's own annotation files lie.")
@click.option("--videos", type=PATH, metavar="DIR", help="Where the videos lie; without it only annotations are checked.")
@click.option("--split", "splits", multiple=True, help="Only this split; repeatable.  [default: all]")
@click.option("--probe/--no-probe", default=True, help="Open every video to find broken ones.  [default: yes]")
@click.option("--encoding", default="utf-8", show_default=True, help="Text encoding of the annotation files.")
@click.option("--strict", is_flag=True, help="Exit with code 4 if any clip is missing or broken.")
@json_option
def check(name: str, strict: bool, as_json: bool, **options: Any) -> None:
    """Say how many clips of each split are present, missing or broken, count repeated captions, and show five examples."""
    with counted("checking", "clips") as tell:
        found = _checked(name, tell, options)
    if as_json:
        print_json({"schema": 1, "name": name, "splits": [one.to_dict() for one in found]})
    else:
        for one in found:
            _show(one)
    if all(one.problem is not None for one in found):
        raise InputError(f"{name}: no split could be read", found[0].problem)
    lacking = sum(len(one.missing) + len(one.broken) for one in found)
    if strict and lacking:
        raise SkippedInputsError(f"{lacking} clips are missing or broken")


@command("list", examples=("vctool data list",))
@json_option
def list_benchmarks(as_json: bool) -> None:
    """The benchmarks, their splits and published sizes."""
    from dataclasses import asdict

    from vctool.data import BENCHMARKS
    from vctool.data.published import PUBLISHED

    rows = [
        (entry, split, known)
        for entry in BENCHMARKS.values()
        for split in entry.splits
        if (known := PUBLISHED.get((entry.name, split))) is not None
    ]
    if as_json:
        listed = [{"name": entry.name, "title": entry.title, "split": split, **asdict(known)} for entry, split, known in rows]
        print_json({"schema": 1, "splits": listed})
        return
    table = plain_table("name", "split", "clips", "queries", "ids' SHA-256")
    for entry, split, known in rows:
        queries = "" if known.queries is None else f"{known.queries:,}"
        table.add_row(entry.name, split, f"{known.clips:,}", queries, known.ids_sha256[:12] if known.ids_sha256 else "unknown")
    stdout().print(table)


@command("manifest", examples=("vctool data manifest msrvtt-9k --annotations msrvtt/ --videos msrvtt/videos -o msrvtt-9k",))
@click.argument("name", metavar="NAME")
@click.option("--annotations", type=PATH, required=True, metavar="DIR", help="Where the benchmark's own annotation files lie.")
@click.option("--videos", type=PATH, required=True, metavar="DIR", help="Where the videos lie.")
@click.option("-o", "--output", type=PATH, required=True, metavar="DIR", help="Where train.jsonl, validation.jsonl and test.jsonl go.")
@click.option("--encoding", default="utf-8", show_default=True, help="Text encoding of the annotation files.")
@json_option
def manifest(name: str, annotations: Path, videos: Path, output: Path, encoding: str, as_json: bool) -> None:
    """Write a benchmark's splits as manifests, for `vctool train NAME --data DIR`.

    Videos that are not there are left out, and counted. A split that the benchmark does not have (MSR-VTT has no validation videos)
    is not written: a recipe then holds out some of the training videos.
    """
    from vctool.data import VideoFolder, benchmark, load_benchmark, manifest_names, write_manifest

    entry, folder = benchmark(name), VideoFolder(videos)
    written = {
        split: write_manifest(load_benchmark(name, split, annotations, encoding), folder, output / f"{own}.jsonl")
        for split, own in manifest_names(entry.splits, entry.test).items()
    }
    if as_json:
        listed = [
            {"split": split, "path": str(one.path), "clips": one.clips, "captions": one.captions, "missing": list(one.missing)}
            for split, one in written.items()
        ]
        print_json({"schema": 1, "name": entry.name, "manifests": listed})
        return
    for split, one in written.items():
        lacking = f"; {len(one.missing):,} videos are missing, {one.missing[0]} first" if one.missing else ""
        bare = f"; {one.silent:,} clips have no caption" if one.silent else ""
        click.echo(f"{one.path}: {split}, {one.clips:,} clips, {one.captions:,} captions{lacking}{bare}")


@command(
    "shard",
    examples=(
        "vctool data shard train.jsonl -o shards",
        "vctool data shard train.jsonl -o shards --frames 12 --side 256",
        "vctool train recipe.toml --data shards",
    ),
)
@click.argument("manifest_path", metavar="MANIFEST.jsonl", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="DIR", help="Where NAME-000000.tar … and NAME.jsonl go.")
@click.option("--name", help="What the shards are called.  [default: the manifest's name]")
@click.option("--clips", "per_shard", type=click.IntRange(min=1), default=1000, show_default=True, help="Samples a file.")
@click.option("--frames", type=click.IntRange(min=1), help="Keep so many pictures of each clip, not the video.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="With --frames: so many a second, and never more than --frames.")
@click.option("--side", type=click.IntRange(min=16), default=256, show_default=True, help="With --frames: their side in pixels.")
@click.option(
    "--resize",
    type=click.Choice(("shortest", "squash")),
    default="shortest",
    show_default=True,
    help="With --frames: as the model does it.",
)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="With --frames: decode processes.")
@json_option
def shard(manifest_path: Path, output: Path, name: str | None, as_json: bool, **options: Any) -> None:
    """Put the clips of a manifest into WebDataset shards: tar files of videos, captions and metadata, with a manifest over them.

    Every command that takes a manifest takes NAME.jsonl, and reads any clip where it lies in its shard. --frames keeps pictures alone.
    """
    from vctool.video.files import find_videos
    from vctool.video.sample import Sampling
    from vctool.video.shards import Extraction, write_shards

    if manifest_path.suffix.lower() != ".jsonl":
        raise InputError(f"{manifest_path} is not a JSONL manifest", 'a line is {"path": "clip.mp4", "captions": ["…"]}')
    frames, fps = options["frames"], options["fps"]
    if fps and not frames:
        raise UsageProblem("--fps says which pictures are kept", "add --frames N, the most that a clip may have")
    how = None
    if frames:
        sampling = Sampling(frames, "fps", fps) if fps else Sampling(frames)
        how = Extraction(sampling, options["side"], options["resize"], options["workers"])
    with counted("writing", "clips") as tell:
        clips = find_videos([manifest_path])
        done = write_shards(clips, output, name or manifest_path.stem, per_shard=options["per_shard"], extraction=how, report=tell)
    if as_json:
        told = {"shards": [str(path) for path in done.shards], "clips": done.clips, "samples": done.samples, "bytes": done.bytes}
        print_json({"schema": 1, "manifest": str(done.manifest), **told, "failed": done.failed})
        return
    click.echo(f"{done.manifest}: {done.clips:,} clips in {len(done.shards)} shards, {amount(done.bytes)}")
    for one, reason in list(done.failed.items())[:_SHOWN]:
        click.echo(f"  left out: {one}: {reason}", err=True)
    if len(done.failed) > _SHOWN:
        click.echo(f"  and {len(done.failed) - _SHOWN:,} more", err=True)


data.add_command(check)
data.add_command(manifest)
data.add_command(shard)
data.add_command(list_benchmarks)


def _checked(name: str, tell: Callable[[int, int], None] | None, options: dict[str, Any]) -> list[SplitCheck]:
    from vctool.data import VideoFolder, benchmark, check_benchmark, check_split, load_split

    probe: Callable[[Path], Any] | None = None
    if options["probe"]:
        from vctool.video.probe import probe as open_video

        probe = open_video
    path, videos, splits = Path(name), options["videos"], options["splits"]
    if path.exists():
        disk = None if videos is None else VideoFolder(videos)
        loaded = [load_split(name, split, videos=videos, encoding=options["encoding"]) for split in (splits or (None,))]
        return [check_split(one, disk, probe=probe, progress=tell) for one in loaded]
    entry = benchmark(name)
    if options["annotations"] is None:
        raise UsageProblem(f"{entry.title} needs the folder of its annotation files", "add --annotations DIR")
    unknown = [one for one in splits if one not in entry.splits and one != entry.test]
    if unknown:
        raise UsageProblem(f"{entry.name} has no '{unknown[0]}' split", f"it has: {', '.join(entry.splits)}")
    return check_benchmark(
        entry, options["annotations"], videos, splits=splits or None, probe=probe, encoding=options["encoding"], progress=tell
    )


def _show(found: SplitCheck) -> None:
    from rich.text import Text

    out = stdout()
    if found.problem is not None:
        out.print(Text(f"{found.split}: not read: {found.problem}\n"))
        return
    out.print(Text(f"{found.split}: {found.clips:,} clips, {found.queries:,} queries, {found.duplicate_captions:,} repeated captions"))
    out.print(Text(f"  {found.statement}; SHA-256 of the ids {found.ids_sha256[:16]}…"))
    if found.videos_checked:
        out.print(Text(f"  {found.present:,} present, {len(found.missing):,} missing, {len(found.broken):,} broken"))
        for one in found.missing[:_SHOWN]:
            out.print(Text(f"    missing: {one}"))
        for one, reason in found.broken[:_SHOWN]:
            out.print(Text(f"    broken: {one}: {reason}"))
        if len(found.missing) > _SHOWN or len(found.broken) > _SHOWN:
            out.print(Text("    … (all of them with --json)"))
    for note in found.notes:
        out.print(Text(f"  note: {note}"))
    table = plain_table("example", "first query", "file")
    for example in found.examples:
        table.add_row(Text(example.id), Text(example.caption), Text(example.path or ("missing" if found.videos_checked else "not checked")))
    out.print(table)
    out.print()
