"""Manifests and benchmark readers: clips, queries and which answers which. No torch."""

from vctool.data.benchmarks import BENCHMARKS, Benchmark, benchmark, load_benchmark, load_split
from vctool.data.check import SplitCheck, check_benchmark, check_split
from vctool.data.locate import Located, VideoFolder, locate
from vctool.data.published import compare_with_published
from vctool.data.records import Clip, Query, Split, build_split, ids_sha256
from vctool.data.training_manifests import Written, manifest_names, write_manifest
from vctool.data.trec import read_qrels

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Clip",
    "Located",
    "Query",
    "Split",
    "SplitCheck",
    "VideoFolder",
    "Written",
    "benchmark",
    "build_split",
    "check_benchmark",
    "check_split",
    "compare_with_published",
    "ids_sha256",
    "load_benchmark",
    "load_split",
    "locate",
    "manifest_names",
    "read_qrels",
    "write_manifest",
]
