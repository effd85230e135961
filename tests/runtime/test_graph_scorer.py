"""The scorer graph: the numbers of the NumPy definition, whatever the memory, the chunks and the precision of the store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vctool.errors import InputError, UsageProblem, VctoolError
from vctool.runtime import graph_chunks, graph_scorer
from vctool.runtime.graph_chunks import bytes_to_keep, chunks
from vctool.runtime.graph_scorer import GraphScorer
from vctool.runtime.machine import has_nvidia_device
from vctool.runtime.sessions import import_onnxruntime
from vctool.scoring import batch_scores, chosen_scores
from vctool.store import ClipTokens, StoreWriter, open_store

DIM = 24
PLENTY, SCARCE = 1 << 30, 40_000  # bytes: everything in one chunk and kept; a few short rows at a time


def unit(generator: np.random.Generator, count: int, width: int = DIM) -> np.ndarray[Any, np.dtype[np.float32]]:
    tokens = generator.standard_normal((count, width)).astype(np.float32)
    scaled: np.ndarray[Any, np.dtype[np.float32]] = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    return scaled


def lengths(kind: str) -> list[tuple[int, int]]:
    generator = np.random.default_rng(7)
    if kind == "even":
        return [(12, 14)] * 40
    if kind == "long":
        return [(3, 5), (700, 2), (4, 900), (0, 333), (250, 1), (6, 6)]
    return [(int(generator.integers(0, 9)), int(generator.integers(0, 30))) for _ in range(50)]


def stored(path: Path, dtype: Any, kind: str) -> Any:
    generator = np.random.default_rng(3)
    with StoreWriter(path, manifest={"model": {"interaction": "fv"}}, dtype=dtype) as writer:
        for i, (frames, video) in enumerate(lengths(kind)):
            parts = unit(generator, frames), unit(generator, video)
            writer.add(ClipTokens(str(i), "", parts[0], np.zeros(frames), parts[1], np.zeros(video)))
        writer.commit()
    return open_store(path)


def in_memory(kind: str) -> Any:
    generator = np.random.default_rng(3)
    given = {}
    for place, side in enumerate(("frame", "video")):
        counts = [pair[place] for pair in lengths(kind)]
        given |= {
            f"{side}_TD": unit(generator, sum(counts)),
            f"{side}_offsets": np.concatenate([[0], np.cumsum(counts)]),
            f"{side}_scale_T": None,
        }
    return SimpleNamespace(**given)


def some_queries() -> list[Any]:
    generator = np.random.default_rng(5)
    masked = np.array([True, False, True, True, False, True, True])
    return [unit(generator, 5), unit(generator, 1), (unit(generator, 7), masked), unit(generator, 40)]


@pytest.fixture(autouse=True)
def definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCTOOL_KERNEL", "numpy")  # the compiled kernels round queries where tokens are int8


def close(found: Any, wanted: Any, atol: float = 2e-6) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == np.float32 and np.array_equal(np.isneginf(mine), np.isneginf(theirs))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("memory", [PLENTY, 200_000, SCARCE])
@pytest.mark.parametrize("kind", ["even", "ragged", "long"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_scores_are_those_of_the_definition_whatever_the_memory(tmp_path: Path, dtype: str, kind: str, memory: int) -> None:
    store = stored(tmp_path / "s.npz", dtype, kind)
    close(GraphScorer("cpu", memory=memory)(some_queries(), store, "fv"), batch_scores(some_queries(), store, "fv"))


@pytest.mark.parametrize("branch", ["f", "v", "fv"])
def test_float32_tokens_and_each_branch(branch: Any) -> None:
    store = in_memory("ragged")
    close(GraphScorer("cpu")(some_queries(), store, branch), batch_scores(some_queries(), store, branch))


@pytest.mark.parametrize("memory", [PLENTY, SCARCE])
@pytest.mark.parametrize("dtype", ["int4", "compact"])
def test_packed_stores_are_decoded(tmp_path: Path, dtype: str, memory: int) -> None:
    store = stored(tmp_path / "s.npz", dtype, "ragged")
    close(GraphScorer("cpu", memory=memory)(some_queries(), store, "fv"), batch_scores(some_queries(), store, "fv"), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4", "compact"])
def test_chosen_clips_score_as_in_the_whole_store(tmp_path: Path, dtype: str) -> None:
    store, scorer = stored(tmp_path / "s.npz", dtype, "ragged"), GraphScorer("cpu")
    clips = np.array([3, 8, 21, 34])
    whole = scorer(some_queries(), store, "fv")
    close(chosen_scores(some_queries(), store, "fv", clips, scorer), [values[:, clips] for values in whole], atol=1e-5)


def test_shards_are_scored_one_after_another(tmp_path: Path) -> None:
    parts = [stored(tmp_path / f"{kind}.npz", "float16", kind) for kind in ("ragged", "long", "even")]
    store: Any = SimpleNamespace(shards=parts)
    scorer = GraphScorer("cpu", memory=PLENTY)
    for _ in range(2):  # the second time from what was kept
        close(scorer(some_queries(), store, "fv"), batch_scores(some_queries(), store, "fv"))


def test_identical_tokens_score_exactly_one() -> None:
    tokens = unit(np.random.default_rng(0), 12, 512)
    store: Any = SimpleNamespace(frame_TD=tokens, frame_offsets=np.array([0, 12]), frame_scale_T=None)
    store.video_TD, store.video_offsets, store.video_scale_T = tokens, store.frame_offsets, None
    assert GraphScorer("cpu")([tokens], store, "fv")[0].tolist() == [[2.0]]


def test_the_size_of_chunks_does_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    store, queries = in_memory("ragged"), some_queries()
    expected = GraphScorer("cpu")(queries, store, "fv")
    seen = set()
    for memory in range(30_000, 200_000, 10_000):
        seen.add(len(list(chunks(store, "video", memory))))
        close(GraphScorer("cpu", memory=memory)(queries, store, "fv"), expected, 1e-6)
    assert len(seen) > 3


@pytest.mark.parametrize("kind", ["even", "ragged", "long"])
@pytest.mark.parametrize("memory", [PLENTY, 200_000, SCARCE])
def test_chunks_hold_each_token_once_and_leave_room_for_queries(kind: str, memory: int) -> None:
    store = in_memory(kind)
    for side in ("frame", "video"):
        tokens, offsets = getattr(store, f"{side}_TD"), getattr(store, f"{side}_offsets")
        found: dict[int, list[Any]] = {}
        for chunk in chunks(store, side, memory):  # type: ignore[arg-type]
            assert chunk.rows_within(memory) >= graph_chunks.LEAST_ROWS
            assert chunk.bytes == sum(array.nbytes for array in chunk.arrays.values())
            for clip, rows, mask in zip(chunk.clip_C, chunk.arrays["clip_tokens"], chunk.arrays["clip_mask"], strict=True):
                assert not rows[~mask].any()
                found.setdefault(int(clip), []).append(rows[mask])
        for clip in range(len(offsets) - 1):
            assert np.array_equal(np.concatenate([*found.get(clip, []), tokens[:0]]), tokens[offsets[clip] : offsets[clip + 1]])
        kept = list(chunks(store, side, PLENTY))  # type: ignore[arg-type]
        assert sum(chunk.bytes for chunk in kept) <= bytes_to_keep(store, side)  # type: ignore[arg-type]


def test_even_clips_are_read_where_they_lie() -> None:
    store = in_memory("even")
    (chunk,) = chunks(store, "frame", PLENTY)
    assert np.shares_memory(chunk.arrays["clip_tokens"], store.frame_TD)


def test_a_store_stays_on_the_device_where_half_of_the_memory_holds_it() -> None:
    store = in_memory("even")
    size = sum(bytes_to_keep(store, side) for side in ("frame", "video"))  # type: ignore[arg-type]
    small, large = GraphScorer("cpu", memory=2 * size - 1), GraphScorer("cpu", memory=2 * size)
    for scorer in (small, large):
        scorer(some_queries(), store, "fv")
    assert small.resident_bytes == 0 < large.resident_bytes <= size
    other = in_memory("ragged")
    close(large(some_queries(), other, "fv"), batch_scores(some_queries(), other, "fv"))
    large(some_queries(), store, "f")
    assert large.resident_bytes < size * 0.6  # the other store is gone, and this one's video tokens were not asked for


def test_memory_that_holds_no_piece_is_refused_with_what_is_needed() -> None:
    with pytest.raises(UsageProblem, match=r"1 kB is too little memory to score tokens 24 wide \(at least 23 kB are needed\)"):
        GraphScorer("cpu", memory=1000)(some_queries(), in_memory("even"), "fv")
    store = in_memory("ragged")
    close(GraphScorer("cpu", memory=24_000)(some_queries(), store, "fv"), batch_scores(some_queries(), store, "fv"))


def test_bad_calls_are_refused() -> None:
    scorer, store = GraphScorer("cpu"), in_memory("even")
    with pytest.raises(UsageProblem, match="choose f"):
        scorer(some_queries(), store, "vf")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="8 wide, clip tokens 24"):
        scorer([unit(np.random.default_rng(0), 3, 8)], store)
    store.frame_TD[12 * 7 + 3, 5] = np.nan
    with pytest.raises(InputError, match="clip 7: its tokens are not finite"):
        scorer(some_queries(), store)
    assert scorer([], store)[0].shape == (0, 40)


def test_cuda_that_is_not_there_is_an_error_and_auto_scores_on_the_cpu() -> None:
    if "CUDAExecutionProvider" in import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime offers CUDA")
    with pytest.raises(VctoolError, match="asked for cuda, but this ONNX Runtime offers only"):
        GraphScorer("cuda")
    assert GraphScorer("auto").device == "cpu"


def test_cuda_that_falls_back_silently_is_said_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = import_onnxruntime()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(graph_scorer, "has_nvidia_device", lambda: True)
    session = ort.InferenceSession

    def silently(path: str, options: Any, providers: Any, **rest: Any) -> Any:  # what ONNX Runtime does where CUDA does not start
        return session(path, options, providers=["CPUExecutionProvider"], **rest)

    monkeypatch.setattr(ort, "InferenceSession", silently)
    with pytest.raises(VctoolError, match="asked for cuda, got CPUExecutionProvider"):
        GraphScorer("cuda")
    scorer = GraphScorer("auto")
    assert scorer.device == "cpu" and scorer.note is not None and "asked for cuda, got CPUExecutionProvider" in scorer.note


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory of a process")
def test_scoring_takes_no_more_memory_than_it_was_given() -> None:
    code = """
import re, sys, threading, numpy as np
from types import SimpleNamespace
from vctool.runtime.graph_scorer import GraphScorer
def anonymous(): return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
tokens = np.random.default_rng(0).standard_normal((30_000, 256)).astype(np.float16)
offsets = np.arange(0, 30_001, 12)
store = SimpleNamespace(frame_TD=tokens, frame_offsets=offsets, frame_scale_T=None)
queries = [np.ones((32, 256), np.float32)] * 16
memory = 12 << 20
GraphScorer("cpu", memory=memory)(queries, SimpleNamespace(frame_TD=tokens[:12], frame_offsets=offsets[:2], frame_scale_T=None,
    video_TD=tokens[:0], video_offsets=offsets[:1]*2), "f")
store.video_TD, store.video_offsets = tokens[:0], np.zeros(2501, int)
before, peak, done = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001): peak = max(peak, anonymous())
watcher = threading.Thread(target=watch); watcher.start()
GraphScorer("cpu", memory=memory, threads=1)(queries, store, "f")
done.set(); watcher.join()
print(peak - before, memory)
"""
    # What is freed is to be given back at once: else this measures the habits of malloc.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    grown, memory = map(int, result.stdout.split())
    assert memory // 4 < grown <= memory + (4 << 20)  # and a session; the tokens as float32 would be 31 MB, their similarities 61 MB


@pytest.mark.gpu
@pytest.mark.skipif(not has_nvidia_device(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("memory", [PLENTY, 1 << 20])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_gpu_gives_the_same_numbers(tmp_path: Path, dtype: str, memory: int) -> None:
    store = stored(tmp_path / "s.npz", dtype, "ragged")
    scorer = GraphScorer("cuda", memory=memory)
    for _ in range(2):
        close(scorer(some_queries(), store, "fv"), batch_scores(some_queries(), store, "fv"), 5e-6)
