"""The scorer graph itself: the definition in float64, the types it takes, and the copies that vctool carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are built with onnx (the extra `export`)")
onnxruntime = pytest.importorskip("onnxruntime", reason="graphs run in ONNX Runtime (the extra `cpu`)")

from vctool.config import ModelConfig  # noqa: E402
from vctool.errors import VctoolError, VerificationError  # noqa: E402
from vctool.runtime import tensorrt_api  # noqa: E402
from vctool.runtime.graph_scorer import GRAPHS  # noqa: E402
from vctool_export.engine_build import BuildLog, build  # noqa: E402
from vctool_export.engine_checks import inputs_of  # noqa: E402
from vctool_export.engine_profiles import profiles_for  # noqa: E402
from vctool_export.scorer_graph import MAX_ERROR, SCORER_TOKENS, TOKEN_TYPES, prove_scorer, scorer_graph, write_scorer  # noqa: E402


def run(tokens: Any, dim: int | None, **feeds: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    session = onnxruntime.InferenceSession(scorer_graph(tokens, dim).SerializeToString(), providers=["CPUExecutionProvider"])
    scores: np.ndarray[Any, np.dtype[np.float32]] = session.run(["scores"], feeds)[0]
    return scores


@pytest.mark.parametrize("dim", [16, None])
@pytest.mark.parametrize("tokens", TOKEN_TYPES)
def test_scores_are_those_of_float64(tokens: Any, dim: int | None) -> None:
    rng = np.random.default_rng(0)
    query_BQD, clip_CTD = rng.normal(size=(3, 5, 16)).astype(np.float32), rng.normal(size=(7, 4, 16))
    query_mask_BQ, clip_mask_CT = rng.random((3, 5)) < 0.7, rng.random((7, 4)) < 0.6
    query_mask_BQ[:, 0] = clip_mask_CT[:, 0] = True
    clip_mask_CT[3] = False
    feeds: dict[str, Any] = {"clip_tokens": (clip_CTD * (20 if tokens == "int8" else 1)).astype(tokens)}
    plain_CTD = feeds["clip_tokens"].astype(np.float64)
    if tokens == "int8":
        feeds["clip_scale"] = rng.random((7, 4)).astype(np.float32)
        plain_CTD *= feeds["clip_scale"][..., None]
    found = run(tokens, dim, query_tokens=query_BQD, query_mask=query_mask_BQ, clip_mask=clip_mask_CT, **feeds)
    sim = np.einsum("bqd,ctd->bqct", query_BQD.astype(np.float64), plain_CTD)
    best = np.where(clip_mask_CT, sim, -np.inf).max(axis=3)
    expected = np.where(query_mask_BQ[..., None], best, 0).sum(axis=1) / query_mask_BQ.sum(axis=1)[:, None]
    assert found.dtype == np.float32 and found.shape == (3, 7) and np.isneginf(found[:, 3]).all()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_what_is_masked_takes_no_part_whatever_it_is() -> None:
    everything = np.ones((1, 2), bool)
    half = np.array([[True, False]])
    query, clip = np.array([[[1, 0], [1e30, 1e30]]], np.float32), np.array([[[-1, 0], [np.inf, np.nan]]], np.float32)
    score = run("float32", 2, query_tokens=query, query_mask=half, clip_tokens=clip, clip_mask=half)
    assert score.tolist() == [[-1.0]]
    score = run("float32", 2, query_tokens=query[:, [0, 0]], query_mask=everything, clip_tokens=-clip[:, [0, 0]], clip_mask=everything)
    assert score.tolist() == [[1.0]]


@pytest.mark.parametrize("tokens", TOKEN_TYPES)
def test_the_graph_is_of_opset_18_has_no_weights_and_names_its_axes(tokens: Any) -> None:
    model = scorer_graph(tokens, 512, {"vctool_version": "1"})
    assert [entry.version for entry in model.opset_import] == [18] and len(model.SerializeToString()) < 4096
    assert {p.key: p.value for p in model.metadata_props} == {"vctool_version": "1"}
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in [*model.graph.input, *model.graph.output]}
    assert shapes["query_tokens"] == ["B", "Q", 512] and shapes["clip_tokens"] == ["C", "T", 512] and shapes["scores"] == ["B", "C"]
    # All are in the list that NVIDIA gives for TensorRT's parser; none has a plugin behind it.
    known = "Abs Cast Concat Div LessOrEqual MatMul Mul ReduceMax ReduceSum Reshape Shape Sub Transpose Unsqueeze Where"
    assert {node.op_type for node in model.graph.node} <= set(known.split())


@pytest.mark.parametrize("tokens", TOKEN_TYPES)
def test_the_graphs_in_the_package_are_those_that_are_built(tokens: Any) -> None:
    carried = onnx.load(Path(GRAPHS) / f"{tokens}.onnx")
    assert carried.graph == scorer_graph(tokens).graph, "run: python -m vctool_export.scorer_graph"


def test_a_scorer_is_proved_against_the_definition_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    write_scorer(tmp_path / "scorer.onnx", SCORER_TOKENS, 32)
    assert prove_scorer(tmp_path / "scorer.onnx") <= MAX_ERROR
    graph = onnx.load(tmp_path / "scorer.onnx")
    next(t for t in graph.graph.initializer if t.name == "least").CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.float32), "least"))
    onnx.save(graph, tmp_path / "scorer.onnx")  # masked tokens count as 0, the commonest mistake
    with pytest.raises(VerificationError, match="the scorer graph differs from the definition"):
        prove_scorer(tmp_path / "scorer.onnx")


@pytest.mark.parametrize("tokens", ["float16", "int8"])
def test_tensorrts_parser_and_builder_take_it(tmp_path: Path, tokens: Any) -> None:
    try:
        rtx = tensorrt_api.load_tensorrt("tensorrt-rtx")
    except VctoolError as problem:
        pytest.skip(f"{problem.message}: the extra `rtx` has its packages")
    write_scorer(tmp_path / "scorer.onnx", tokens, 64)
    profiles = profiles_for("scorer", inputs_of(tmp_path / "scorer.onnx"), ModelConfig(embed_dim=64))
    assert {p.name for p in profiles} == {"interactive", "bulk"}
    log = BuildLog(rtx, tmp_path / "log")
    try:
        assert build(rtx, tmp_path / "scorer.onnx", profiles, log, architecture="sm80").plan.nbytes > 1000
    finally:
        log.close()
