"""A model directory and videos so small that a test makes them in milliseconds, and still real: ONNX graphs, a tokenizer, H.264.

A frame's feature is its mean colour (around grey) times a fixed rotation of the space; the word "red" is the vector of pure
red under the same rotation. So "red" finds the red video, and the red second of a video that changes colour.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vctool.config import BackboneConfig, Expand, Interaction, ModelConfig, PreprocessConfig, QueryConfig, TemporalConfig, write_json
from vctool.runtime.checksums import write_checksums

DIM = 8
SIZE = 16
LENGTH = 12
COLOURS = {
    "red": (230, 20, 20),
    "green": (20, 230, 20),
    "blue": (20, 20, 230),
    "yellow": (230, 230, 20),
    "cyan": (20, 230, 230),
    "magenta": (230, 20, 230),
}
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "then", "video", "fris", "##bee", *COLOURS]


def _rotation() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.linalg.qr(np.random.default_rng(7).normal(size=(DIM, DIM)))[0].astype(np.float32)


def build_tiny_model(
    folder: Path,
    *,
    name: str = "tiny",
    frames: int = 4,
    interaction: Interaction = "fv",
    temporal: str = "transformer",
    policy: str = "tokens",
    expand: Expand = "off",
    weights: bytes = b"weights of the tiny model",
) -> Path:
    """Write the directory and return it. Another `name` or other `weights` give another fingerprint."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    config = ModelConfig(
        name=name,
        embed_dim=DIM,
        frames=frames,
        interaction=interaction,
        backbone=BackboneConfig(kind="offline", name="heads"),
        query=QueryConfig(policy=policy, expand=expand, max_length=LENGTH),  # type: ignore[arg-type]
        temporal=TemporalConfig(kind=temporal, layers=1, max_frames=16),  # type: ignore[arg-type]
    )
    write_json(config, folder / "config.json")
    write_json(PreprocessConfig(size=SIZE, interpolation="bilinear"), folder / "preprocess.json")
    (folder / "model.safetensors").write_bytes(weights)
    _save_tokenizer(folder)
    _save(_text_graph(policy, expand), folder / "onnx" / "text.onnx")
    _save(_frame_graph(), folder / "onnx" / "frame.onnx")
    _save(_temporal_graph(temporal), folder / "onnx" / "temporal.onnx")
    (folder / "README.md").write_text("a toy\n")
    write_checksums(folder)
    return folder


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(VOCAB)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(VOCAB[:4])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"kind": "bert", "context_length": LENGTH, "pad_id": 0}))


def _word_vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    vectors = np.zeros((len(VOCAB), DIM), dtype=np.float32)
    vectors[:, 7] = 1.0  # words without a colour look where no frame is
    vectors[4:9, 6] = np.linspace(0.2, 0.6, 5)
    for word, rgb in COLOURS.items():
        vectors[VOCAB.index(word)] = 0
        vectors[VOCAB.index(word), :3] = np.array(rgb) / 255 - 0.5
    vectors = vectors @ _rotation().T
    unit: np.ndarray[Any, np.dtype[np.float32]] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _text_graph(policy: str, expand: str) -> Any:
    from onnx import TensorProto, helper

    constants = {"embedding": _word_vectors(), "epsilon": np.float32(1e-12), "axis1": np.array([1]), "axis2": np.array([2])}
    if policy == "pooled":
        nodes = [
            helper.make_node("Gather", ["embedding", "input_ids"], ["word"]),
            helper.make_node("Cast", ["attention_mask"], ["mask_f"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask_f", "axis2"], ["mask_3"]),
            helper.make_node("Mul", ["word", "mask_3"], ["counted"]),
            helper.make_node("ReduceSum", ["counted", "axis1"], ["total"], keepdims=1),
            *_normalise("total", "query_tokens"),
            helper.make_node("ReduceMax", ["attention_mask", "axis1"], ["any"], keepdims=1),
            helper.make_node("Cast", ["any"], ["query_mask"], to=TensorProto.BOOL),
        ]
    else:
        source = "ones" if expand == "on" else "attention_mask"
        nodes = [
            helper.make_node("Gather", ["embedding", "input_ids"], ["query_tokens"]),
            helper.make_node("Cast", [source], ["query_mask"], to=TensorProto.BOOL),
        ]
        if expand == "on":
            shape = helper.make_node("Shape", ["input_ids"], ["shape"])
            one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
            nodes = [shape, helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=one), *nodes]
    count = 1 if policy == "pooled" else LENGTH
    return _graph(
        "text",
        nodes,
        [("input_ids", TensorProto.INT64, ["B", LENGTH]), ("attention_mask", TensorProto.INT64, ["B", LENGTH])],
        [("query_tokens", TensorProto.FLOAT, ["B", count, DIM]), ("query_mask", TensorProto.BOOL, ["B", count])],
        constants,
    )


def _frame_graph() -> Any:
    from onnx import TensorProto, helper

    # Not normalised, as in real models: the feature's length is the colour's strength.
    constants = {"scale": np.float32(1 / 255), "grey": np.float32(0.5), "sides": np.array([1, 2]), "project": _rotation()[:, :3].T.copy()}
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "sides"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "grey"], ["centred"]),
        helper.make_node("MatMul", ["centred", "project"], ["frame_features"]),
    ]
    return _graph(
        "frame",
        nodes,
        [("frames", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [("frame_features", TensorProto.FLOAT, ["N", DIM])],
        constants,
    )


def _temporal_graph(kind: str) -> Any:
    from onnx import TensorProto, helper

    expansion = (np.random.default_rng(3).normal(size=(1, 2, DIM)) * 0.05).astype(np.float32)
    constants = {
        "axis1": np.array([1]),
        "axis2": np.array([2]),
        "epsilon": np.float32(1e-12),
        "half": np.float32(0.5),
        "expansion": expansion,
        "true2": np.ones((1, 2), dtype=np.bool_),
        "one": np.array([1]),
        "two": np.array([2]),
        "zero": np.array([0]),
    }
    nodes = [
        helper.make_node("Cast", ["frame_mask"], ["mask_f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_f", "axis2"], ["mask_3"]),
        helper.make_node("Mul", ["frame_features", "mask_3"], ["valid"]),
        helper.make_node("ReduceSum", ["valid", "axis1"], ["total"], keepdims=1),
        helper.make_node("ReduceSum", ["mask_3", "axis1"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
    ]
    if kind == "mean":
        nodes += [
            *_normalise("mean", "video_tokens"),
            helper.make_node("ReduceMax", ["mask_f", "axis1"], ["any"], keepdims=1),
            helper.make_node("Cast", ["any"], ["video_mask"], to=TensorProto.BOOL),
        ]
        video: int | str = 1
    else:
        nodes += [
            helper.make_node("Mul", ["mean", "half"], ["context"]),
            helper.make_node("Add", ["frame_features", "context"], ["mixed"]),
            helper.make_node("Add", ["mean", "expansion"], ["global"]),
            helper.make_node("Concat", ["mixed", "global"], ["tokens"], axis=1),
            *_normalise("tokens", "video_tokens"),
            helper.make_node("Shape", ["frame_mask"], ["mask_shape"]),
            helper.make_node("Slice", ["mask_shape", "zero", "one"], ["batch"]),
            helper.make_node("Concat", ["batch", "two"], ["batch_two"], axis=0),
            helper.make_node("Expand", ["true2", "batch_two"], ["always"]),
            helper.make_node("Concat", ["frame_mask", "always"], ["video_mask"], axis=1),
        ]
        video = "V"
    return _graph(
        "temporal",
        nodes,
        [("frame_features", TensorProto.FLOAT, ["B", "F", DIM]), ("frame_mask", TensorProto.BOOL, ["B", "F"])],
        [("video_tokens", TensorProto.FLOAT, ["B", video, DIM]), ("video_mask", TensorProto.BOOL, ["B", video])],
        constants,
    )


def _normalise(source: str, target: str) -> list[Any]:
    from onnx import helper

    return [
        helper.make_node("ReduceL2", [source, "axis2"], [f"{target}_l2"], keepdims=1),
        helper.make_node("Add", [f"{target}_l2", "epsilon"], [f"{target}_norm"]),
        helper.make_node("Div", [source, f"{target}_norm"], [target]),
    ]


def _graph(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> Any:
    from onnx import helper, numpy_helper

    used = set(itertools.chain.from_iterable(n.input for n in nodes))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _save(model: Any, path: Path) -> None:
    import onnx

    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def make_video(path: Path, colours: Sequence[str], *, seconds: float = 0.5, fps: int = 10, size: tuple[int, int] = (64, 48)) -> Path:
    """An H.264 file that shows each colour for `seconds`."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        for number, colour in enumerate(itertools.chain.from_iterable([c] * max(1, round(seconds * fps)) for c in colours)):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), COLOURS[colour], np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_audio(path: Path) -> Path:
    """A file with sound and no picture."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
