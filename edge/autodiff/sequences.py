"""Takes lists of tensors away that a model splits a tensor into and reads one by one, as torch's exporter writes chunk and split
when it isn't told to optimize: a list is no float, so no gradient would pass.

    SplitToSequence(x, split, axis) -> list, SequenceAt(list, i) -> y      becomes      Slice(x, start, end, axis) -> y
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff.graph import Array
from fleetgrad.edge.autodiff.registry import reads


def unlist(model: onnx.ModelProto) -> None:
    """Replaces such pairs in place, where sizes and index are constants and the list serves nothing else."""
    graph = model.graph
    lists = {n.output[0]: n for n in graph.node if n.op_type == "SplitToSequence" and len(n.input) == 2 and n.input[1]}
    if not lists:
        return
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for n in graph.node:
        if n.op_type == "Constant" and n.attribute[0].name == "value":
            known[n.output[0]] = numpy_helper.to_array(n.attribute[0].t)
    parts = {
        n.output[0]: part for n in graph.node
        if n.op_type == "SequenceAt" and (maker := lists.get(n.input[0])) and (part := _part(maker, n.input[1], known))
    }  # fmt: skip
    others = {name for n in graph.node if n.output[0] not in parts for name in reads(n)} | {
        o.name for o in graph.output
    }
    for i, n in reversed(list(enumerate(graph.node))):
        if n.output[0] in parts and n.input[0] not in others:
            ends = [f"{n.output[0]}.{what}" for what in ("start", "end", "axis")]
            values = zip(parts[n.output[0]], ends, strict=True)
            graph.initializer.extend(numpy_helper.from_array(np.array([v], np.int64), name) for v, name in values)
            cut = helper.make_node("Slice", [lists[n.input[0]].input[0], *ends], [n.output[0]], name=n.name)
            graph.node[i].CopyFrom(cut)
    used = {name for n in graph.node for name in reads(n)} | {o.name for o in graph.output}
    for name, maker in lists.items():
        if name not in used:
            graph.node.remove(maker)


def _part(maker: onnx.NodeProto, at: str, known: Mapping[str, Array]) -> tuple[int, int, int] | None:
    """Where entry `at` of the list starts and ends, and the axis; None where that isn't known."""
    if maker.input[1] not in known or at not in known:
        return None
    sizes, i = known[maker.input[1]], int(known[at].item())
    axis = next((a.i for a in maker.attribute if a.name == "axis"), 0)
    if sizes.ndim:
        edges = [0, *np.cumsum(sizes).tolist()]
        i += len(sizes) if i < 0 else 0
        return (edges[i], edges[i + 1], axis) if 0 <= i < len(sizes) else None
    return (i * int(sizes), (i + 1) * int(sizes), axis) if i >= 0 else None
