"""Ask the PyTorch model the questions of a reference: banks of rows for each graph, and the scores of a probe set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vctool.models.video_colbert import VideoColBERT
from vctool.preprocessing.tokenizer import Tokenizer
from vctool_export.graphs import GraphSpec, graph_modules
from vctool_export.probe import SENTENCES, Probe
from vctool_export.reference import Array, Bank, Reference
from vctool_export.verify import probe_scores

FRAME_ROWS = 6
TEXT_BATCH = 32
"""The batch that `vctool query --queries` encodes with."""
CLIP_BATCH = 4


class TorchSession:
    """A graph's PyTorch module behind the same `run` as a session."""

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec

    def run(self, outputs: tuple[str, ...], feeds: Mapping[str, Array], /) -> list[Array]:
        """The named outputs, float32 or bool."""
        with torch.no_grad():
            given = self._spec.module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._spec.inputs))
        named = dict(zip(self._spec.outputs, given if isinstance(given, tuple) else (given,), strict=True))
        return [named[name].numpy() for name in outputs]


def torch_reference(
    model: VideoColBERT,
    tokenizer: Tokenizer,
    probe: Probe,
    facts: Mapping[str, Any],
    *,
    score_probe: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Reference:
    """PyTorch's answers: every graph on real frames of the probe and real sentences, and the probe's scores.

    facts: identity of the model, kept with the answers. The frame module is the model as it was trained: where the exported
    one is reparameterised (MobileCLIP2), that step is under test too. score_probe False leaves out the minutes.
    """
    say = progress or (lambda _: None)
    specs = {spec.name: spec for spec in graph_modules(model)}
    sessions = {name: TorchSession(spec) for name, spec in specs.items()}
    say("asking PyTorch")
    banks = [*_text_banks(specs["text"], sessions["text"], tokenizer)]
    rows = _some_frames(probe)
    (features_RD,) = sessions["frame"].run(("frame_features",), {"frames": rows})
    names = tuple(f"frame {number}" for number in range(len(rows)))
    banks.append(Bank("frame", f"{rows.shape[1]} px", names, {"frames": rows}, {"frame_features": features_RD}))
    banks += _temporal_banks(model, sessions["temporal"], features_RD)
    scores = None
    if score_probe:
        say(f"asking PyTorch about the probe set: {len(probe.clips)} clips, {len(probe.queries)} queries")
        scores = probe_scores(sessions, probe)
    versions = {name: metadata.version(name) for name in ("vctool", "torch", "numpy", "pillow", "av")}
    frames = model.config.frames
    return Reference(
        tuple(banks), scores, dict(facts) | {"versions": versions}, {"text": TEXT_BATCH, "frame": frames, "temporal": CLIP_BATCH}
    )


def _text_banks(spec: GraphSpec, session: TorchSession, tokenizer: Tokenizer) -> list[Bank]:
    tokens = tokenizer.encode([text for _, text in SENTENCES])
    labels = tuple(label for label, _ in SENTENCES)
    lengths = {tokens.input_ids_BL.shape[1]: list(range(len(labels)))}
    if 1 in spec.dynamic["input_ids"]:
        # Texts cut to their true length: what a caller may feed who does not pad.
        short = int(tokens.length_B.min())
        for length in (max(2, short), int(tokens.length_B[2])):
            fitting = [row for row in range(len(labels)) if tokens.length_B[row] <= length]
            lengths.setdefault(length, fitting)
    banks = []
    for length, rows in lengths.items():
        feeds = {"input_ids": tokens.input_ids_BL[rows][:, :length], "attention_mask": tokens.attention_mask_BL[rows][:, :length]}
        banks.append(_bank("text", f"{length} tokens", tuple(labels[row] for row in rows), feeds, ("query_tokens", "query_mask"), session))
    return banks


def _temporal_banks(model: VideoColBERT, session: TorchSession, features_RD: NDArray[np.float32]) -> list[Bank]:
    typical = model.config.frames
    longest = model.config.temporal.max_frames if model.config.temporal.kind == "transformer" else 4 * typical
    # Neighbouring frames of a clip are alike, not equal: a little noise, from a fixed seed, on real features.
    noise = np.random.default_rng(0)
    banks = []
    for frames in dict.fromkeys((1, typical, longest)):
        clips = []
        for clip in range(2):
            chosen = features_RD[(np.arange(frames) + clip) % len(features_RD)]
            clips.append(chosen + 0.05 * np.abs(features_RD).mean() * noise.standard_normal(chosen.shape))
        mask_CF = np.ones((2, frames), dtype=np.bool_)
        mask_CF[1, max(1, frames - frames // 3) :] = False
        feeds = {"frame_features": np.stack(clips).astype(np.float32), "frame_mask": mask_CF}
        names = ("all frames", "frames missing")
        banks.append(_bank("temporal", f"{frames} frames", names, feeds, ("video_tokens", "video_mask"), session))
    return banks


def _bank(graph: str, label: str, rows: tuple[str, ...], feeds: dict[str, Array], outputs: tuple[str, ...], session: TorchSession) -> Bank:
    feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
    return Bank(graph, label, rows, feeds, dict(zip(outputs, session.run(outputs, feeds), strict=True)))


def _some_frames(probe: Probe) -> NDArray[np.uint8]:
    """Real frames of different clips; the last two rows are extremes, black and noise."""
    step = max(1, len(probe.clips) // (FRAME_ROWS - 2))
    chosen = [probe.clips[(i * step) % len(probe.clips)][0] for i in range(FRAME_ROWS - 2)]
    noise = np.random.default_rng(0).integers(0, 256, chosen[0].shape, dtype=np.uint8)
    return np.stack([*chosen, np.zeros_like(chosen[0]), noise])
