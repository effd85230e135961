"""MeanMaxSim as an ONNX graph: the definition of `vctool.scoring.mean_max_sim` for B queries and C clips padded to T tokens.

    query_tokens float32 [B, Q, D], query_mask bool [B, Q],
    clip_tokens float32, float16 or int8 [C, T, D], clip_mask bool [C, T], with int8 also clip_scale float32 [C, T]
    -> scores float32 [B, C]

Products, maxima and sums are float32 whatever the tokens are. Masked tokens are -inf before the maximum; a maximum within
2^-18 of 1 counts as 1; the mean is over counted query tokens; a clip without a token that counts scores -inf. Operators are
those that TensorRT's parser takes too. The graph has no weights: it depends on the width alone, and with `dim=None` on nothing.

Run `python -m vctool_export.scorer_graph` to write anew the graphs that vctool carries (`vctool/runtime/scorer_graphs`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vctool.errors import VerificationError
from vctool.scoring import ONE, mean_max_sim

TokenType = Literal["float32", "float16", "int8"]
TOKEN_TYPES: tuple[TokenType, ...] = get_args(TokenType)
OPSET = 18
SCORER_TOKENS: TokenType = "float16"
"""What the scorer of a model directory takes: the tokens of float16 stores as they are; vctool itself carries one for each type."""
MAX_ERROR = 1e-5

_ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}


def scorer_graph(tokens: TokenType, dim: int | None = None, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The graph for clip tokens of one type. dim: the width D, None for any. metadata: kept in the file."""
    width = "D" if dim is None else dim
    constants = {
        "zero": np.float32(0),
        "one": np.float32(1),
        "least": np.float32(-np.inf),
        "near_one": np.float32(ONE),
        "token_axis": np.array([1], np.int64),
        "last_axis": np.array([2], np.int64),
        "first_axis": np.array([0], np.int64),
        "query_axis": np.array([1], np.int64),
        "minus_one": np.array([-1], np.int64),
    }
    node = helper.make_node
    nodes = [
        # Every query token is a column, every clip token a row: [C * T, B * Q] is one product.
        node("Shape", ["query_tokens"], ["width_only"], start=2, end=3),
        node("Concat", ["minus_one", "width_only"], ["rows_by_width"], axis=0),
        node("Reshape", ["query_tokens", "rows_by_width"], ["query_RD"]),
        node("Transpose", ["query_RD"], ["query_DR"], perm=[1, 0]),
        *([] if tokens == "float32" else [node("Cast", ["clip_tokens"], ["tokens_CTD"], to=TensorProto.FLOAT)]),
        node("MatMul", ["clip_tokens" if tokens == "float32" else "tokens_CTD", "query_DR"], ["product_CTR"]),
        *(
            [node("Unsqueeze", ["clip_scale", "last_axis"], ["scale_CT1"]), node("Mul", ["product_CTR", "scale_CT1"], ["scaled_CTR"])]
            if tokens == "int8"
            else []
        ),
        node("Unsqueeze", ["clip_mask", "last_axis"], ["mask_CT1"]),
        node("Where", ["mask_CT1", "scaled_CTR" if tokens == "int8" else "product_CTR", "least"], ["similarity_CTR"]),
        node("ReduceMax", ["similarity_CTR", "token_axis"], ["maximum_CR"], keepdims=0),
        # Identical tokens score exactly 1, as in NumPy.
        node("Sub", ["maximum_CR", "one"], ["below_CR"]),
        node("Abs", ["below_CR"], ["off_CR"]),
        node("LessOrEqual", ["off_CR", "near_one"], ["is_one_CR"]),
        node("Where", ["is_one_CR", "one", "maximum_CR"], ["best_CR"]),
        # Not counted is set to zero, not multiplied away: -inf * 0 is NaN.
        node("Shape", ["query_mask"], ["batch_and_length"]),
        node("Concat", ["minus_one", "batch_and_length"], ["clips_batch_length"], axis=0),
        node("Reshape", ["best_CR", "clips_batch_length"], ["best_CBQ"]),
        node("Unsqueeze", ["query_mask", "first_axis"], ["counted_1BQ"]),
        node("Where", ["counted_1BQ", "best_CBQ", "zero"], ["counted_CBQ"]),
        node("ReduceSum", ["counted_CBQ", "last_axis"], ["sum_CB"], keepdims=0),
        node("Cast", ["query_mask"], ["counted_BQ"], to=TensorProto.FLOAT),
        node("ReduceSum", ["counted_BQ", "query_axis"], ["count_B"], keepdims=0),
        node("Div", ["sum_CB", "count_B"], ["mean_CB"]),
        node("Transpose", ["mean_CB"], ["scores"], perm=[1, 0]),
    ]
    inputs: list[tuple[str, int, list[str | int]]] = [
        ("query_tokens", TensorProto.FLOAT, ["B", "Q", width]),
        ("query_mask", TensorProto.BOOL, ["B", "Q"]),
        ("clip_tokens", _ELEMENT[tokens], ["C", "T", width]),
        ("clip_mask", TensorProto.BOOL, ["C", "T"]),
    ]
    if tokens == "int8":
        inputs.append(("clip_scale", TensorProto.FLOAT, ["C", "T"]))
    used = {name for made in nodes for name in made.input}
    graph = helper.make_graph(
        nodes,
        f"meanmaxsim_{tokens}",
        [helper.make_tensor_value_info(*given) for given in inputs],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", "C"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, producer_name="vctool", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


def write_scorer(path: Path, tokens: TokenType, dim: int | None = None, metadata: Mapping[str, str] | None = None) -> None:
    """Write `scorer_graph` to `path`."""
    path.write_bytes(scorer_graph(tokens, dim, metadata).SerializeToString(deterministic=True))


def prove_scorer(path: Path) -> float:
    """The largest difference of a scorer for `SCORER_TOKENS` from the NumPy definition, over clips of several lengths, one empty.

    Raises VerificationError if it is more than `MAX_ERROR`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    width = next(i.shape[2] for i in session.get_inputs() if i.name == "query_tokens")
    rng = np.random.default_rng(0)
    query_BQD, clip_CTD = (_unit(rng.standard_normal(shape)) for shape in ((3, 7, width), (9, 6, width)))
    query_mask_BQ, clip_mask_CT = rng.random((3, 7)) < 0.7, rng.random((9, 6)) < 0.7
    query_mask_BQ[:, 0], clip_mask_CT[4] = True, False
    half_CTD = clip_CTD.astype(SCORER_TOKENS)
    feeds = {"query_tokens": query_BQD, "query_mask": query_mask_BQ, "clip_tokens": half_CTD, "clip_mask": clip_mask_CT}
    found_BC = session.run(["scores"], feeds)[0]
    worst = 0.0
    for b in range(3):
        rows_TD, offsets = half_CTD.astype(np.float32).reshape(-1, width), np.arange(0, 55, 6)
        wanted_C = mean_max_sim(query_BQD[b], rows_TD, offsets, query_mask_BQ[b], clip_mask_CT.reshape(-1))
        with np.errstate(invalid="ignore"):
            off_C = np.where(found_BC[b] == wanted_C, 0, np.abs(found_BC[b] - wanted_C))
        worst = max(worst, float(np.nan_to_num(off_C, nan=np.inf).max()))
    if worst > MAX_ERROR:
        raise VerificationError(f"the scorer graph differs from the definition by {worst:.2g} (allowed: {MAX_ERROR:g})")
    return worst


def _unit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
    return unit


def _main() -> None:
    import vctool.runtime

    folder = Path(vctool.runtime.__file__).with_name("scorer_graphs")
    folder.mkdir(exist_ok=True)
    for tokens in TOKEN_TYPES:
        write_scorer(folder / f"{tokens}.onnx", tokens)
        print(folder / f"{tokens}.onnx", file=sys.stderr)


if __name__ == "__main__":
    _main()


__all__ = ["MAX_ERROR", "OPSET", "SCORER_TOKENS", "TOKEN_TYPES", "TokenType", "prove_scorer", "scorer_graph", "write_scorer"]
