"""In what an engine computes: read from the engine itself where there is a GPU, else from the strongly typed network it is built from.

A label that disagrees with what was read is refused: an fp32 engine must not go about as fp16.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vctool.errors import VerificationError

# How network definitions, engine inspectors of several versions, and ONNX name types; ours is the last column's.
_NAMES = {
    "float": "float32",
    "fp32": "float32",
    "float32": "float32",
    "tf32": "float32",
    "half": "float16",
    "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "fp8": "fp8",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
    "uint8": "uint8",
}
LABELS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "fp8": "fp8"}
FLOATING = frozenset(LABELS)
_NARROWEST = ("int8", "fp8", "float16", "bfloat16", "float32")
# Products: what decides speed and what the label is about.
_PRODUCTS_NETWORK = frozenset({"MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "ATTENTION", "ATTENTION_INPUT"})
_PRODUCTS_ENGINE = re.compile(r"gemm|conv|matmul|matrixmultiply|matrix_multiply|einsum|attention|mha|myelin|fused|fully", re.IGNORECASE)


@dataclass(frozen=True)
class Precision:
    """What an engine computes in.

    source: `engine inspector` or `network definition`. layers: number of layers by type, those that compute with floats. products: the
    same for matrix products and convolutions alone. label: the type of most products, `fp32`, `fp16`, `bf16`, `int8`.
    """

    source: str
    layers: Mapping[str, int]
    products: Mapping[str, int]

    @property
    def label(self) -> str:
        """Of most products; of most layers where there are none."""
        counts = self.products or self.layers
        return LABELS[max(counts, key=lambda name: counts[name])] if counts else "fp32"

    def share(self, kind: str) -> float:
        """Share of the products (of the layers, where there are none) that compute in `kind`, as in `layers`."""
        counts = self.products or self.layers
        return counts.get(kind, 0) / max(1, sum(counts.values()))

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"label": self.label, "source": self.source, "layers": dict(self.layers), "products": dict(self.products)}

    def require(self, label: str, what: str) -> None:
        """Raises VerificationError unless most products compute in what the label says."""
        if self.label != label:
            raise VerificationError(
                f"{what} was to be {label}, but {dict(self.products or self.layers)} of its products compute in {self.label} "
                f"(read from the {self.source})",
                "precision lies in the graph: export it in the precision that you want",
            )


def of_network(network: Any) -> Precision:
    """Of a parsed network, which is strongly typed: the builder may fuse layers, but not change their types.

    A layer counts under the narrowest floating type that it reads; int8 comes as a product of dequantised values, so a product that
    reads a dequantising layer on both sides counts as int8.
    """
    layers: Counter[str] = Counter()
    products: Counter[str] = Counter()
    dequantised: set[str] = set()
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        kind = layer.type.name
        if kind == "DEQUANTIZE":
            dequantised.add(layer.get_output(0).name)
        read = [t for t in (layer.get_input(i) for i in range(layer.num_inputs)) if t is not None]
        made = [t for t in (layer.get_output(i) for i in range(layer.num_outputs)) if t is not None]
        types = [name for name in (_type(t.dtype.name) for t in (*read, *made)) if name in FLOATING]
        if not types or kind in ("CONSTANT", "SHAPE", "CAST"):
            continue
        narrow = min(types, key=_NARROWEST.index)
        if kind in _PRODUCTS_NETWORK:
            if read and all(t.name in dequantised for t in read):
                narrow = "int8"
            products[narrow] += 1
        layers[narrow] += 1
    return Precision("network definition", _sorted(layers), _sorted(products))


def of_inspector(text: str) -> Precision:
    """From `IEngineInspector.get_engine_information(JSON)` of an engine built with detailed profiling.

    Layers count under the narrowest floating type of their inputs and outputs; which layers are products is told by their types'
    names, in which fused blocks count. Raises ValueError if the text is not that JSON or holds names only.
    """
    content = json.loads(text)
    layers: Counter[str] = Counter()
    products: Counter[str] = Counter()
    for layer in content["Layers"]:
        if not isinstance(layer, dict):
            raise ValueError("the engine tells names of layers only: it was not built with detailed profiling")
        sides = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
        named = (_type(str(side.get("Datatype") or side.get("Format/Datatype", ""))) for side in sides)
        types = [name for name in named if name in FLOATING]
        if not types:
            continue
        narrow = min(types, key=_NARROWEST.index)
        layers[narrow] += 1
        if _PRODUCTS_ENGINE.search(f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"):
            products[narrow] += 1
    return Precision("engine inspector", _sorted(layers), _sorted(products))


def _type(text: str) -> str:
    """`Row major linear FP16 format` and `HALF` are both float16; "" for what is no type."""
    words = re.findall(r"[A-Za-z]+\d*", text)
    return next((_NAMES[word.lower()] for word in words if word.lower() in _NAMES), "")


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
