"""`vctool info`: what a path is."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vctool.cli.command import command
from vctool.cli.console import amount, clock, facts_table, plain_table, print_json, say, stdout
from vctool.cli.options import PATH, json_option
from vctool.errors import InputError, StoreError, UsageProblem, VctoolError

if TYPE_CHECKING:
    from vctool.runtime.evidence import Branch
    from vctool.runtime.model_directory import ModelDirectory

_SHOWN = 16  # characters of a fingerprint


@command("info", examples=("vctool info MODEL", "vctool info clips.npz --json", "vctool info small.npz --measure --against clips.npz"))
@click.argument("path", type=PATH)
@click.option("--all-files", is_flag=True, help="Check every file of a model directory, or every array of a store.")
@click.option("--measure", is_flag=True, help="Of a store: bytes a clip and recall, as it is and in every coarser precision.")
@click.option("--against", type=PATH, metavar="CLIPS.npz", help="Measure against this store of the same clips.  [default: itself]")
@click.option("--tokens", type=PATH, metavar="Q.npy", help="Measure with these queries, [queries, tokens, width].  [default: made up]")
@click.option("--branch", type=click.Choice(["f", "v", "fv"]), help="Measure this branch.  [default: the model's own]")
@click.option("--clips", type=click.IntRange(min=1), default=5000, show_default=True, help="Measure on a sample of so many clips.")
@click.option("--queries", type=click.IntRange(min=1), default=100, show_default=True, help="Make up so many queries.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample and the queries.")
@json_option
def info(path: Path, all_files: bool, measure: bool, as_json: bool, **settings: Any) -> None:
    """Say what PATH is: a model directory, a token store, or a video file. Damaged ones are told with what to do.

    --measure compares scores with exact ones of the reference's tokens. Queries are made up from stored tokens (a moment of a clip plus
    noise) unless --tokens gives real ones.
    """
    if not measure and (settings["against"] or settings["tokens"] or settings["branch"]):
        raise UsageProblem("--against, --tokens and --branch belong to --measure", "add --measure")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder", "give a model directory, a token store or a video")
    if _is_store_folder(path):
        facts = _store(path, all_files)
    elif path.is_dir():
        facts = _model(path, all_files)
    elif _is_zip(path) or path.suffix == ".npz":
        facts = _store(path, all_files)
    else:
        facts = _video(path)
    if measure:
        if facts["kind"] != "store":
            raise UsageProblem(
                f"{path} is a {facts['kind']}: only a token store can be measured", "give the store that `vctool index` wrote"
            )
        facts["measured"] = _measured(path, **settings)
    if as_json:
        print_json(facts)
        return
    stdout().print(facts_table(_SHOW[facts["kind"]](facts)))
    if measure:
        _show_measured(facts["measured"])


def _measured(
    path: Path, against: Path | None, tokens: Path | None, branch: str | None, clips: int, queries: int, seed: int
) -> dict[str, Any]:
    from vctool.runtime.precision_report import measure_precisions
    from vctool.runtime.search import default_branch
    from vctool.store import open_store

    with open_store(path) as store, nullcontext() if against is None else open_store(against) as other:
        real = [] if tokens is None else _query_tokens(tokens)
        chosen = cast("Branch", branch) if branch else default_branch(store)
        found = measure_precisions(store, chosen, against=other, queries=real, clips=clips, count=queries, seed=seed)
    return found.to_json()


def _query_tokens(path: Path) -> list[Any]:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as problem:
        raise InputError(f"{path}: cannot be read as an array: {problem}", "give a .npy file") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.dtype.kind != "f":
        raise InputError(f"{path}: not an array of query tokens", "expected float [queries, tokens, width] or [tokens, width]")
    return list(array if array.ndim == 3 else array[None])


def _show_measured(measured: dict[str, Any]) -> None:
    table = plain_table("precision", "bytes a clip", "R@1", "R@10", "99 % within", "largest error")
    for row in measured["rows"]:
        name = row["precision"] + (" (as stored)" if row["stored"] else "")
        shares = (f"{row['recall_1']:.2f}", f"{row['recall_10']:.3f}")
        table.add_row(name, f"{row['clip_bytes']:,.0f}", *shares, f"first {row['depth']}", f"{row['error']:.2g}")
    stdout().print(table)
    about = "made-up queries (a stored moment plus noise)" if measured["made_up"] else "queries"
    sample = f"{measured['clips']:,} of {measured['of']:,} clips, branch {measured['branch']}, seed {measured['seed']}"
    say(f"{measured['queries']} {about}, {sample};")
    say(f"compared with exact scores of the {measured['reference']} tokens of {measured['against'] or 'the store itself'}")


def _model(path: Path, all_files: bool) -> dict[str, Any]:
    from vctool.config import to_dict
    from vctool.runtime.model_directory import GRAPHS, ModelDirectory
    from vctool.runtime.verdicts import told_verdicts

    model = ModelDirectory.open(path, verify="all" if all_files else "used")
    return {
        "schema": 1,
        "kind": "model",
        "path": str(path.resolve()),
        "sha256": model.fingerprint,
        "config": to_dict(model.config),
        "preprocess": to_dict(model.preprocess),
        "graphs": {name: _graph_bytes(model, name) for name in GRAPHS},
        "engines": sorted(name for name in model.files if name.startswith("tensorrt/") and name.endswith(".engine")),
        "verdicts": told_verdicts(model.path),
        "files": len(model.files),
        "bytes": sum(record.bytes for record in model.files.values()),
        "verified": "all" if all_files else "used",
    }


def _store(path: Path, all_files: bool) -> dict[str, Any]:
    from vctool.runtime.search import find_model
    from vctool.store import open_store

    store = open_store(path)
    if all_files:
        store.verify()
    try:
        found = str(find_model(store).resolve())
    except StoreError:
        found = None
    metas = [store.clip_meta(i) for i in range(len(store))]
    durations = [m["duration"] for m in metas if isinstance(m.get("duration"), (int, float))]
    manifest = store.manifest
    return {
        "schema": 1,
        "kind": "store",
        "path": str(path.resolve()),
        "bytes": sum(shard.file_bytes for shard in store.shards),
        "shards": len(store.shards) if path.is_dir() else None,
        "clips": len(store),
        "frame_tokens": sum(len(shard.frame_TD) for shard in store.shards),
        "video_tokens": sum(len(shard.video_TD) for shard in store.shards),
        "dim": store.dim,
        "dtype": store.dtype,
        "seconds": round(sum(durations), 3),
        "captions": sum(len(m["captions"]) for m in metas if isinstance(m.get("captions"), list)),
        "model": manifest.get("model") if isinstance(manifest.get("model"), dict) else {},
        "model_found": found,
        "frames": manifest.get("frames"),
        "generation": manifest.get("generation"),
        "created_by": manifest.get("created_by"),
        "first_ids": [store.clip_id(i) for i in range(min(3, len(store)))],
        "verified": all_files,
    }


def _video(path: Path) -> dict[str, Any]:
    from vctool.video.probe import probe

    try:
        found = probe(path)
    except VctoolError as problem:
        raise InputError(f"{problem.message}", problem.hint or "expected a model directory, a token store (.npz) or a video") from None
    return {
        "schema": 1,
        "kind": "video",
        "path": str(path.resolve()),
        "bytes": path.stat().st_size,
        "width": found.width,
        "height": found.height,
        "duration": found.duration,
        "frames": found.frame_count,
        "codec": found.codec,
        "rotation": found.rotation,
    }


def _show_model(facts: dict[str, Any]) -> list[tuple[str, str]]:
    config, query, temporal = facts["config"], facts["config"]["query"], facts["config"]["temporal"]
    graphs = [f"{name} {amount(size)}" if size is not None else f"{name} missing" for name, size in facts["graphs"].items()]
    kind = f"transformer, {temporal['layers']} layers, {temporal['expansion_tokens']} expansion tokens"
    return [
        ("model directory", f"{config['name']}   ({facts['path']})"),
        ("fingerprint", str(facts["sha256"][:_SHOWN])),
        ("backbone", f"{config['backbone']['name']} ({config['backbone']['kind']})"),
        ("interaction", f"{config['interaction']}, tokens {config['embed_dim']} wide"),
        ("query", f"{query['policy']}, up to {query['max_length']} tokens, expansion {query['expand']}"),
        *([("zero-shot", _zero_shot(config))] if query["policy"] == "pooled" else []),
        ("frames", f"{config['frames']} a clip, {facts['preprocess']['size']} px, {facts['preprocess']['resize']}"),
        ("temporal encoder", kind if temporal["kind"] == "transformer" else temporal["kind"]),
        ("graphs", ", ".join(graphs)),
        ("proved", "; ".join(f"{v['artifact']} on {v['engine']}: {v['status']}" for v in facts["verdicts"]) or "no report: vctool verify"),
        ("engines", ", ".join(facts["engines"]) or "none"),
        ("files", f"{facts['files']}, {amount(facts['bytes'])}" + (", all checked" if facts["verified"] == "all" else "")),
    ]


def _zero_shot(config: dict[str, Any]) -> str:
    """How a model without token training scores."""
    video = {"mean": "mean of frames", "none": "best frame"}.get(config["temporal"]["kind"], "best video token")
    against = {"f": "best frame", "v": video, "fv": f"best frame + {video}"}[config["interaction"]]
    templates = "".join(f", as {template!r}" for template in config["query"]["templates"])
    return f"no token training: the pooled text vector against {against}{templates}"


def _show_store(facts: dict[str, Any]) -> list[tuple[str, str]]:
    model, frames = facts["model"], facts["frames"]
    per_clip = f"{frames.get('count')} a clip, decoder {frames.get('decoder')}" if isinstance(frames, dict) else "unknown"
    shards = "" if facts["shards"] is None else f" in {facts['shards']} shard{'' if facts['shards'] == 1 else 's'}"
    where = facts["model_found"] or "not found here: give --model to `vctool query`"
    return [
        ("token store", f"{facts['path']}" + ("   (all checksums match)" if facts["verified"] else "")),
        ("clips", f"{facts['clips']:,}, {clock(facts['seconds'])} of video, {facts['captions']:,} captions"),
        ("tokens", f"{facts['frame_tokens']:,} frame, {facts['video_tokens']:,} video, {facts['dim']} wide, {facts['dtype']}"),
        ("size", f"{amount(facts['bytes'])}{shards}, generation {facts['generation']}, by {facts['created_by']}"),
        ("frames", per_clip),
        ("model", f"{model.get('name', 'unknown')} ({str(model.get('sha256', 'unknown'))[:_SHOWN]})"),
        ("model directory", where),
        ("first clips", ", ".join(facts["first_ids"]) + (" …" if facts["clips"] > 3 else "")),
    ]


def _show_video(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rotated = f", rotated by {facts['rotation']}°" if facts["rotation"] else ""
    return [
        ("video", facts["path"]),
        ("picture", f"{facts['width']} x {facts['height']}, {facts['codec']}{rotated}"),
        ("length", f"{clock(facts['duration'])}, {facts['frames']:,} frames"),
        ("size", amount(facts["bytes"])),
    ]


_SHOW = {"model": _show_model, "store": _show_store, "video": _show_video}


def _is_store_folder(path: Path) -> bool:
    from vctool.store.shards import is_store_folder

    return is_store_folder(path)


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK"
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from None


def _graph_bytes(model: ModelDirectory, name: str) -> int | None:
    """Size of a graph with its weights, which lie in a file beside it; None if the model has none of that name."""
    if not model.has_graph(name):
        return None
    return sum(record.bytes for path, record in model.files.items() if path in (f"onnx/{name}.onnx", f"onnx/{name}.onnx.data"))
