"""Exact scores of a store through an ONNX graph: on a GPU without torch, and by the same code on a CPU.

The graph (`scorer_graphs/`, made by `vctool_export.scorer_graph`) scores B queries against C clips padded to T tokens. What it is
given and all that it holds in between stays within `memory` bytes (see `graph_chunks`). Where the tokens of a store fit into half
of that, they go to the device once and stay there; else every call sends them through, a chunk at a time.

Equal to the NumPy definition within 2e-6, whatever the memory. Queries stay float32: with int8 stores the compiled CPU kernels,
which round them, may differ by 0.002. Tokens that no graph takes as they are (int4, compact) are decoded to float32 first.

Shape letters: B queries, Q query tokens, M counted ones of a query, N clips, C rows of a chunk (clips, or pieces of long ones).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vctool.errors import InputError, UsageProblem, VctoolError, install_line
from vctool.runtime.graph_chunks import Chunk, Side, bytes_to_keep, chunks
from vctool.runtime.machine import available_cores
from vctool.runtime.placement import first_line
from vctool.runtime.sessions import Device, has_nvidia_device, import_onnxruntime
from vctool.runtime.sessions_onnxruntime import CPU, CUDA
from vctool.scoring import Branch, Query, ShardSource, TokenSource, counted_tokens
from vctool.scoring.branches import shards_of

MEMORY = 2 << 30
GRAPHS = Path(__file__).with_name("scorer_graphs")

_ROWS = 2048  # query tokens scored at once, where the memory allows

Float32 = NDArray[np.float32]
Source = TokenSource | ShardSource


class GraphScorer:
    """A `vctool.scoring.Scorer` on ONNX Runtime. It remembers, and keeps on the device, the store it scored last.

    device: what it runs on. note: what the user should know about that choice, or None. memory: bytes on the device.
    """

    def __init__(self, device: Device = "auto", *, memory: int = MEMORY, threads: int | None = None) -> None:
        """Raises VctoolError if `cuda` was asked for and cannot be had; `auto` then scores on the CPU, and `note` says why."""
        self.memory, self._threads = memory, threads
        self._ort = import_onnxruntime()
        self._loaded: tuple[tuple[str, int], Any] | None = None
        self._store: Source | None = None
        self._kept: dict[tuple[int, Side], list[tuple[Chunk, dict[str, Any]]]] = {}
        self.device, self.note = self._choose(device)

    def __call__(self, queries: Sequence[Query], store: Source, branch: Branch = "fv", /) -> tuple[Float32, Float32, Float32]:
        """As `vctool.scoring.batch_scores`. Raises UsageProblem if `memory` does not hold some query tokens and a piece of a clip."""
        if branch not in ("f", "v", "fv"):
            raise UsageProblem(f"branch {branch!r} is not known", "choose f (frames), v (video tokens) or fv (their sum)")
        counted = [counted_tokens(*query) if isinstance(query, tuple) else counted_tokens(query) for query in queries]
        if store is not self._store:
            self._store, self._kept = store, {}
        shards = shards_of(store)
        clips = sum(len(shard.frame_offsets) - 1 for shard in shards)
        frame_BN: Float32 = np.broadcast_to(np.float32(np.nan), (len(counted), clips))
        video_BN = frame_BN
        if "f" in branch:
            frame_BN = self._side_scores(counted, shards, "frame", clips)
        if "v" in branch:
            video_BN = self._side_scores(counted, shards, "video", clips)
        score_BN = frame_BN + video_BN if branch == "fv" else frame_BN if branch == "f" else video_BN
        return score_BN, frame_BN, video_BN

    @property
    def resident_bytes(self) -> int:
        """Bytes of tokens that lie on the device between calls."""
        return sum(chunk.bytes for kept in self._kept.values() for chunk, _ in kept)

    def _choose(self, device: Device) -> tuple[Literal["cpu", "cuda"], str | None]:
        offered = self._ort.get_available_providers()
        if device == "cuda" and CUDA not in offered:
            raise VctoolError(
                f"asked for cuda, but this ONNX Runtime offers only {', '.join(offered)}",
                f"pip uninstall -y onnxruntime && {install_line('gpu')}, or use --device cpu",
            )
        if device == "cpu" or (device == "auto" and (CUDA not in offered or not has_nvidia_device())):
            return "cpu", None
        try:
            _load(self._ort, "float16", "cuda", self.memory, self._threads)  # starts CUDA, or says why not
        except VctoolError as problem:
            if device == "cuda":
                raise
            return "cpu", f"the GPU does not score: {problem.message}"
        return "cuda", None

    # -- a side of the store ----------------------------------------------------------------------------------------

    def _side_scores(self, queries: Sequence[Float32], shards: Sequence[TokenSource], side: Side, clips: int) -> Float32:
        score_BN = np.full((len(queries), clips), -np.inf, np.float32)
        if not queries:
            return score_BN
        tokens = [sum(bytes_to_keep(shard, each) for shard in shards) for each in ("frame", "video")]
        keep = 2 * sum(tokens) <= self.memory
        room = self.memory - sum(tokens) if keep else self.memory
        first = 0
        for number, shard in enumerate(shards):
            own_BN = score_BN[:, first : first + len(shard.frame_offsets) - 1]
            self._shard_scores(queries, self._sent(shard, number, first, side, room, keep), room, own_BN)
            first += own_BN.shape[1]
        bad_N = ~(score_BN < np.inf).all(axis=0)
        if bad_N.any():
            raise InputError(
                f"clip {int(bad_N.argmax())}: its tokens are not finite", "check the store with `vctool info STORE --all-files`"
            )
        return score_BN

    def _sent(
        self, shard: TokenSource, number: int, first: int, side: Side, room: int, keep: bool
    ) -> Iterator[tuple[Chunk, dict[str, Any]]]:
        """Chunks with their arrays on the device; on a CPU they are used where they lie."""
        if (number, side) in self._kept:
            yield from self._kept[number, side]
            return
        made = []
        for chunk in chunks(shard, side, room):
            broken = chunk.broken()
            if broken is not None:
                hint = "check the store with `vctool info STORE --all-files`"
                raise InputError(f"clip {first + broken}: its tokens are not finite", hint)
            sent = chunk, {name: self._placed(array) for name, array in chunk.arrays.items()}
            if keep:
                # On a CPU the graph reads the very arrays; from a GPU's point of view they have gone.
                made.append(sent if self.device == "cpu" else (replace(chunk, arrays={}), sent[1]))
            yield sent
        if keep:
            self._kept[number, side] = made

    def _placed(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, self.device, 0)

    def _shard_scores(self, queries: Sequence[Float32], sent: Iterator[tuple[Chunk, dict[str, Any]]], room: int, score_BN: Float32) -> None:
        longest = max(len(query_MD) for query_MD in queries)
        maxima: list[dict[int, Float32]] = [{} for _ in queries]  # of the tokens of each query, for clips that come in pieces
        for chunk, values in sent:
            rows = min(chunk.rows_within(room), _ROWS)
            if chunk.pieces or longest > rows:
                # A query of one token has its maximum for a score, and maxima can be put together.
                for b, query_MD in enumerate(queries):
                    parts = [self._run(chunk, values, room, list(query_MD[at : at + rows, None])) for at in range(0, len(query_MD), rows)]
                    best_MC = np.concatenate(parts)
                    if not chunk.pieces:
                        score_BN[b, chunk.clip_C] = best_MC.mean(axis=0, dtype=np.float64)
                        continue
                    for column, clip in enumerate(chunk.clip_C.tolist()):
                        maxima[b][clip] = np.maximum(maxima[b].get(clip, -np.inf), best_MC[:, column])
                continue
            together = max(1, rows // longest)
            for at in range(0, len(queries), together):
                score_BN[at : at + together, chunk.clip_C] = self._run(chunk, values, room, queries[at : at + together])
        for b, found in enumerate(maxima):
            for clip, best_M in found.items():
                score_BN[b, clip] = best_M.mean(dtype=np.float64)

    # -- one run ----------------------------------------------------------------------------------------------------

    def _run(self, chunk: Chunk, values: dict[str, Any], room: int, queries: Sequence[Float32]) -> Float32:
        """Scores float32 [B, C]."""
        length, width = max(len(query_MD) for query_MD in queries), queries[0].shape[1]
        if width != chunk.shape[2]:
            raise InputError(f"query tokens are {width} wide, clip tokens {chunk.shape[2]}", "query with the model of the index")
        query_BQD = np.zeros((len(queries), length, width), np.float32)
        mask_BQ = np.zeros((len(queries), length), bool)
        for b, query_MD in enumerate(queries):
            query_BQD[b, : len(query_MD)], mask_BQ[b, : len(query_MD)] = query_MD, True
        session = self._session(chunk.graph, room)
        binding = session.io_binding()
        feeds = {"query_tokens": self._placed(query_BQD), "query_mask": self._placed(mask_BQ), **values}
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("scores", self.device, 0)
        try:
            session.run_with_iobinding(binding)
        except Exception as problem:  # ONNX Runtime's exceptions share no base class of their own
            what = f"{len(queries)} queries against {len(chunk.clip_C)} clips"
            raise VctoolError(
                f"the scorer graph failed on {self.device}, {what}: {first_line(problem)}", "give it less --memory"
            ) from problem
        scores_BC: Float32 = binding.copy_outputs_to_cpu()[0]
        return scores_BC

    def _session(self, graph: str, room: int) -> Any:
        if self._loaded is None or self._loaded[0] != (graph, room):
            self._loaded = None  # one arena at a time
            self._loaded = (graph, room), _load(self._ort, graph, self.device, room, self._threads)
        return self._loaded[1]


def _load(ort: Any, graph: str, device: str, memory: int, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On a CPU memory goes straight back; on a GPU the arena is held to its limit.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    providers: list[Any] = [CPU]
    if device == "cuda":
        # TF32 would keep 10 of the 23 bits of every product.
        providers.insert(0, (CUDA, {"gpu_mem_limit": str(memory), "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}))
    try:
        session = ort.InferenceSession(str(GRAPHS / f"{graph}.onnx"), options, providers=providers, enable_fallback=0)
    except Exception as problem:  # as above
        raise VctoolError(f"the scorer graph does not load on {device}: {first_line(problem)}", "see `vctool doctor`") from problem
    got = session.get_providers()
    if device == "cuda" and CUDA not in got:
        # ONNX Runtime only logs this and goes on, slowly, on the CPU.
        raise VctoolError(
            f"asked for cuda, got {', '.join(got)}: the CUDA provider did not start",
            "`vctool doctor` shows what is missing; --device cpu works meanwhile",
        )
    return session
