"""The benchmarks by name, and one way to load any of them, a manifest, or a folder of judgements."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vctool.data import activitynet, didemo, lsmdc, manifest, msrvtt, msvd, trec, vatex
from vctool.data.records import CaptionPolicy, Split
from vctool.errors import InputError, UsageProblem

Loader = Callable[[Path, str, str], Split]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its loader (folder, split, encoding), its splits in the order to check them, and its default one.

    family: name of the folder its annotations may lie in below a common root.
    """

    name: str
    title: str
    family: str
    load: Loader
    splits: tuple[str, ...]
    test: str = "test"


BENCHMARKS = {
    entry.name: entry
    for entry in (
        Benchmark("msrvtt-1ka", "MSR-VTT 1k-A (9k training)", "msrvtt", msrvtt.load_1ka, ("train", "test")),
        Benchmark("msrvtt-1ka-7k", "MSR-VTT 1k-A (7k training)", "msrvtt", partial(msrvtt.load_1ka, train="7k"), ("train", "test")),
        Benchmark("msrvtt-full", "MSR-VTT full", "msrvtt", msrvtt.load_full, ("train", "val", "test")),
        Benchmark("msrvtt-1kb", "MSR-VTT 1k-B (Miech)", "msrvtt", msrvtt.load_1kb, ("train", "test")),
        Benchmark("msvd", "MSVD", "msvd", msvd.load, ("train", "val", "test")),
        Benchmark("vatex", "VATEX (HGR split)", "vatex", vatex.load_hgr, ("train", "val", "test")),
        Benchmark("vatex-official", "VATEX (official splits)", "vatex", vatex.load_official, ("train", "val", "test")),
        Benchmark("didemo", "DiDeMo (paragraphs)", "didemo", didemo.load, ("train", "val", "test")),
        Benchmark("activitynet", "ActivityNet (paragraphs)", "activitynet", activitynet.load, ("train", "val_1", "val_2"), "val_1"),
        Benchmark("lsmdc", "LSMDC", "lsmdc", lsmdc.load, ("train", "val", "test")),
    )
}
ALIASES = {"msrvtt": "msrvtt-1ka", "msrvtt-1k-a": "msrvtt-1ka", "msrvtt-9k": "msrvtt-1ka", "msrvtt-7k": "msrvtt-1ka-7k"}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name (case, `_` and aliases forgiven). Raises UsageProblem naming the nearest one."""
    key = name.lower().replace("_", "-")
    key = ALIASES.get(key, key)
    if key in BENCHMARKS:
        return BENCHMARKS[key]
    near = difflib.get_close_matches(key, [*BENCHMARKS, *ALIASES], n=1)
    raise UsageProblem(f"unknown benchmark '{name}'", f"did you mean '{near[0]}'?" if near else f"known: {', '.join(BENCHMARKS)}")


def annotation_folder(root: Path, family: str) -> Path:
    """`root`, or its subfolder named after the benchmark's family where there is one (a root that holds several)."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", "give the folder that holds the annotation files")
    inside = sorted(path for path in root.iterdir() if path.is_dir() and path.name.lower().replace("-", "").replace("_", "") == family)
    return inside[0] if inside else root


def load_benchmark(name: str, split: str, annotations: Path, encoding: str = "utf-8") -> Split:
    """One split of a benchmark from the files its owners publish."""
    entry = benchmark(name)
    return entry.load(annotation_folder(annotations, entry.family), split, encoding)


def load_split(
    data: str,
    split: str | None = None,
    *,
    annotations: Path | None = None,
    videos: Path | None = None,
    encoding: str = "utf-8",
    policy: CaptionPolicy = "all",
) -> Split:
    """Load what the user named: a manifest file, a folder with corpus.jsonl, or a benchmark's name (with `annotations`).

    split: None means the benchmark's test split, or all rows of a manifest. policy: what a manifest's captions are
    (`all` queries, `paragraph` joined, or `one` per clip); benchmarks have their own.
    """
    path = Path(data)
    if path.is_file():
        return manifest.load(path, split, encoding, policy=policy, videos=videos)
    if path.is_dir():
        if trec.is_trec_folder(path):
            return trec.load(path, split, encoding)
        raise InputError(f"{path}: a folder without corpus.jsonl", "name a manifest file, or a benchmark with --annotations DIR")
    looks_like_path = path.suffix.lower() in (".jsonl", ".json", ".ndjson") or len(path.parts) > 1
    if looks_like_path:
        raise InputError(f"{path} does not exist")
    entry = benchmark(data)
    if annotations is None:
        raise UsageProblem(f"{entry.title} needs the folder of its annotation files", "add --annotations DIR")
    return load_benchmark(data, split or entry.test, annotations, encoding)
