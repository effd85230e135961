"""The guard of a masked attention, moved from its weights to its result.

PyTorch gives a query whose keys are all masked the result 0: it exports `Where(IsNaN(p), 0, p)` between softmax and the product with the
values. TensorRT for RTX 1.7 takes half-precision attention for its fused kernel, finds no softmax before that product, and ends the build
("mha_fusion.cpp: CHECK(is_softmax(…)) failed"). After the product the guard does the same: a row of NaN weights makes a row of NaN, and
nothing else does.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto


def move_softmax_guards(graph: onnx.GraphProto) -> int:
    """Change the graph in place; returns how many guards were moved. A guard in another place than above is left alone."""
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    kept = {output.name for output in graph.output}
    moved = 0
    for guard in [node for node in graph.node if node.op_type == "Where"]:
        test = makers.get(guard.input[0])
        if test is None or test.op_type != "IsNaN" or test.input[0] != guard.input[2]:
            continue
        source, after = makers.get(guard.input[2]), users.get(guard.output[0], [])
        if source is None or source.op_type != "Softmax" or len(after) != 1 or len(users.get(test.output[0], [])) != 1:
            continue
        product = after[0]
        if product.op_type != "MatMul" or product.input[0] != guard.output[0] or {guard.output[0], product.output[0]} & kept:
            continue
        product.input[0] = guard.input[2]
        inner = f"{product.output[0]}.unguarded"
        outer, product.output[0] = product.output[0], inner
        test.input[0] = inner
        guard.input[2], guard.output[0] = inner, outer
        moved += 1
    if moved:
        _sort(graph)
    return moved


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in an order in which they can be computed, as near to the old one as that allows."""
    made_here = {name for node in graph.node for name in node.output}
    known: set[str] = {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        late = []
        for node in waiting:
            if all(name in known or name not in made_here for name in node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                late.append(node)
        if len(late) == len(waiting):
            raise ValueError("the graph has a cycle")
        waiting = late
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
