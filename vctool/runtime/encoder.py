"""From text to query tokens and from frames to clip tokens, through the graphs of a model directory.

Shape letters: B batch, L padded text length, Q query tokens, N frames of a batch, F frames of a clip, V video tokens,
S side of the input picture, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vctool.errors import InputError, ModelError
from vctool.preprocessing.tokenizer import TokenBatch, Tokenizer, Word
from vctool.runtime.model_directory import ModelDirectory
from vctool.runtime.sessions import Device, Graph, Provider
from vctool.runtime.templates import averaged, checked, filled

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class QueryTokens:
    """One encoded query.

    query_QD: float32 unit rows. mask_Q: bool, the tokens that count. pieces_Q: the text of each token. pad_Q: bool, true on
    pad positions (soft query expansion). words: the words a reader sees, as ranges of tokens. dropped: text cut off because
    the query is longer than the model reads, "" if nothing was. pooled: the one token is the whole text (a tower without token training).
    templates: what the text was put into, see `runtime.templates`.
    """

    text: str
    query_QD: Float32
    mask_Q: NDArray[np.bool_]
    pieces_Q: list[str]
    pad_Q: NDArray[np.bool_]
    words: list[Word]
    dropped: str = ""
    pooled: bool = False
    templates: tuple[str, ...] = ()

    @classmethod
    def from_array(cls, query_QD: NDArray[np.generic], name: str) -> QueryTokens:
        """Tokens that were encoded elsewhere; each row is a counted token. Rows are L2-normalised here.

        Raises InputError if the array is not `[Q, D]` of finite rows that have a length.
        """
        if query_QD.ndim != 2 or 0 in query_QD.shape or query_QD.dtype.kind not in "fiu":
            raise InputError(f"{name}: query tokens must be numbers of shape [tokens, width], got {query_QD.dtype} {list(query_QD.shape)}")
        tokens_QD = query_QD.astype(np.float64)
        if not np.isfinite(tokens_QD).all() or not np.abs(tokens_QD).sum(axis=1).all():
            raise InputError(f"{name}: a query token is NaN, infinite or all zeros")
        tokens_QD /= np.linalg.norm(tokens_QD, axis=1, keepdims=True)
        count = len(tokens_QD)
        pieces = [f"token {i + 1}" for i in range(count)]
        return cls(
            text=name,
            query_QD=tokens_QD.astype(np.float32),
            mask_Q=np.ones(count, dtype=np.bool_),
            pieces_Q=pieces,
            pad_Q=np.zeros(count, dtype=np.bool_),
            words=[Word(piece, i, i + 1) for i, piece in enumerate(pieces)],
        )


class TextEncoder:
    """The text tower of a model directory: tokenizer and `text.onnx`."""

    def __init__(self, model: ModelDirectory, *, device: Device = "auto", provider: Provider = "auto", threads: int | None = None) -> None:
        self.model = model
        self.templates = checked(model.config.query.templates, model.config.query.policy)
        with model.checking("text") as path:
            self.tokenizer = Tokenizer.load(model.path)
            self.graph = Graph(path, device=device, provider=provider, threads=threads)
        self.graph.require(("input_ids", "attention_mask"), ("query_tokens", "query_mask"))
        length = self.graph.inputs["input_ids"][1]
        if isinstance(length, int) and length != self.tokenizer.settings.context_length:
            raise ModelError(
                f"{self.graph.path} takes {length} tokens, tokenizer_config.json says {self.tokenizer.settings.context_length}",
                "export the model again",
            )

    def use_templates(self, templates: Sequence[str]) -> None:
        """Put queries into these from now on, in place of the model's own. Raises UsageProblem if they do not fit the model."""
        self.templates = checked(templates, self.model.config.query.policy)

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> list[QueryTokens]:
        """Encode queries. Raises InputError for a query without a word in it."""
        _require_text(texts)
        asked = filled(texts, self.templates) if self.templates else texts
        encoded: list[QueryTokens] = []
        for start in range(0, len(asked), batch_size):
            encoded.extend(self._encode(asked[start : start + batch_size]))
        if not self.templates:
            return encoded
        count = len(self.templates)
        return [averaged(text, encoded[i * count : (i + 1) * count], self.templates) for i, text in enumerate(texts)]

    def _encode(self, texts: Sequence[str]) -> list[QueryTokens]:
        tokens = self.tokenizer.encode(texts)
        for text, words in zip(texts, tokens.words, strict=True):
            if not words:
                raise InputError(f"the query {text!r} holds nothing that this model can read", "describe what to look for in words")
        feeds = {"input_ids": tokens.input_ids_BL, "attention_mask": tokens.attention_mask_BL}
        query_BQD, mask_BQ = self.graph.run(("query_tokens", "query_mask"), feeds)
        return [self._query(text, tokens, row, query_BQD[row], mask_BQ[row]) for row, text in enumerate(texts)]

    def _query(self, text: str, tokens: TokenBatch, row: int, query_QD: NDArray[np.float32], mask_Q: NDArray[np.bool_]) -> QueryTokens:
        if not np.isfinite(query_QD[mask_Q]).all() or not mask_Q.any():
            raise ModelError(f"{self.graph.path}: gave no usable tokens for {text!r}", "export the model again in full precision")
        pieces, words = tokens.pieces[row], tokens.words[row]
        pad_Q = tokens.attention_mask_BL[row] == 0
        pooled = self.model.config.query.policy == "pooled"
        if pooled:
            pieces, words, pad_Q = [text], [Word(text, 0, 1)], np.zeros(1, dtype=np.bool_)
        if len(query_QD) != len(pieces):
            raise ModelError(
                f"{self.graph.path}: {len(query_QD)} query tokens for policy '{self.model.config.query.policy}', expected {len(pieces)}",
                "config.json and the graph do not belong together: export the model again",
            )
        return QueryTokens(text, query_QD.astype(np.float32), mask_Q.astype(np.bool_), pieces, pad_Q, words, tokens.dropped[row], pooled)


def _require_text(texts: Sequence[str]) -> None:
    for text in texts:
        if not text.strip():
            raise InputError("the query is empty", 'describe what to look for, for example: "a dog catching a frisbee"')


class VideoEncoder:
    """The video side of a model directory: `frame.onnx` and `temporal.onnx`."""

    def __init__(self, model: ModelDirectory, *, device: Device = "auto", provider: Provider = "auto", threads: int | None = None) -> None:
        self.model = model
        self.frame_graph = Graph(model.graph("frame"), device=device, provider=provider, threads=threads)
        self.frame_graph.require(("frames",), ("frame_features",))
        self.temporal_graph: Graph | None = None
        if model.config.temporal.kind != "none" or model.has_graph("temporal"):
            self.temporal_graph = Graph(model.graph("temporal"), device=device, provider=provider, threads=threads)
            self.temporal_graph.require(("frame_features", "frame_mask"), ("video_tokens", "video_mask"))

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self.frame_graph.device

    def frame_features(self, frames_NSSC: NDArray[np.uint8]) -> Float32:
        """uint8 `[N, S, S, 3]` (already resized) to float32 `[N, D]`, not normalised."""
        (features_ND,) = self.frame_graph.run(("frame_features",), {"frames": np.ascontiguousarray(frames_NSSC)})
        if features_ND.ndim != 2 or len(features_ND) != len(frames_NSSC):
            raise ModelError(
                f"{self.frame_graph.path}: gave {list(features_ND.shape)} for {len(frames_NSSC)} frames", "export the model again"
            )
        return features_ND.astype(np.float32, copy=False)

    def clip_tokens(self, features_FD: Float32, times_F: NDArray[np.floating]) -> tuple[Float32, Float32, Float32, Float32]:
        """One clip's frame features and their seconds to `(frame_FD, frame_time_F, video_VD, video_time_V)`, all float32.

        frame_FD and video_VD are unit rows. video_time_V: the first F video tokens belong to the frames; expansion tokens, and
        the mean of a `mean` encoder, have no time (NaN). Raises ModelError if a token comes out NaN, infinite or zero.
        """
        frame_FD = _unit(features_FD, str(self.frame_graph.path))
        frame_time_F = np.asarray(times_F, dtype=np.float32)
        video_VD = frame_FD if self.temporal_graph is None else self._temporal(self.temporal_graph, features_FD)
        video_time_V = np.full(len(video_VD), np.nan, dtype=np.float32)
        if self.model.config.temporal.kind != "mean":
            rows = min(len(video_VD), len(frame_time_F))
            video_time_V[:rows] = frame_time_F[:rows]
        return frame_FD, frame_time_F, video_VD, video_time_V

    def encode(self, frames_FSSC: NDArray[np.uint8], times_F: NDArray[np.floating]) -> tuple[Float32, Float32, Float32, Float32]:
        """`clip_tokens` of `frame_features`: one clip at a time, so that a clip's tokens never depend on its neighbours."""
        return self.clip_tokens(self.frame_features(frames_FSSC), times_F)

    def _temporal(self, graph: Graph, features_FD: Float32) -> Float32:
        limit = self.model.config.temporal.max_frames
        if self.model.config.temporal.kind == "transformer" and len(features_FD) > limit:
            raise ModelError(f"{graph.path}: {len(features_FD)} frames, this model reads at most {limit}", f"use --frames {limit} or fewer")
        feeds = {"frame_features": features_FD[None], "frame_mask": np.ones((1, len(features_FD)), dtype=np.bool_)}
        video_1VD, mask_1V = graph.run(("video_tokens", "video_mask"), feeds)
        return _unit(video_1VD[0][mask_1V[0]], str(graph.path))


def _unit(token_TD: NDArray[np.floating], where: str) -> Float32:
    token_TD = token_TD.astype(np.float64)
    norm_T1 = np.linalg.norm(token_TD, axis=1, keepdims=True)
    if not np.isfinite(norm_T1).all() or not norm_T1.all():
        raise ModelError(f"{where}: a token is NaN, infinite or zero", "export the model again in full precision")
    unit_TD: Float32 = (token_TD / norm_T1).astype(np.float32)
    return unit_TD
