"""Manifests and benchmark readers: clips, queries and which answers which. No torch."""

from vctool.data.benchmarks import BENCHMARKS, Benchmark, benchmark, load_benchmark, load_split
from vctool.data.check import SplitCheck, check_benchmark, check_split
from vctool.data.locate import Located, VideoFolder, locate
from vctool.data.published import compare_with_published
from vctool.data.records import Clip, Query, Split, build_split, ids_sha256
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
    "benchmark",
    "build_split",
    "check_benchmark",
    "check_split",
    "compare_with_published",
    "ids_sha256",
    "load_benchmark",
    "load_split",
    "locate",
    "read_qrels",
]
