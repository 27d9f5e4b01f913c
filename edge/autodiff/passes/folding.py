"""Constant folding: what is the same for any input is computed once, when the plan is made.

Exporters compute shapes at each run, and so do rules. onnxruntime folds what depends on constants alone, but it can't know that
an entry of Shape(x) is fixed where another is the batch, nor that a shape with one batch in it may have -1 there in a Reshape.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff.errors import ModelError
from fleetgrad.edge.autodiff.graph import IR_VERSION, OPSET, Array, Shape
from fleetgrad.edge.autodiff.measuring import run
from fleetgrad.edge.autodiff.passes.graph import Graph, plain
from fleetgrad.edge.autodiff.registry import reads

MOST_BYTES = 1 << 16  # of a folded value: the plan travels, and a larger constant is quickly made


def fold(graph: Graph) -> Graph:
    """Puts constants in the place of nodes whose outputs are known, and small."""
    known = {name: value for name, value in graph.known.items() if value.nbytes <= MOST_BYTES}
    settled = known.keys() | {name for name, t in graph.constants.items() if t.ByteSize() <= MOST_BYTES}
    candidates = list[onnx.NodeProto]()
    for node in graph.nodes:
        if node.domain or known.keys() >= set(node.output):
            continue
        if (found := _shape(node, graph.shapes)) is not None:
            known[node.output[0]] = found
        elif plain(node) and reads(node) <= settled:
            candidates.append(node)
        else:
            continue
        settled |= set(node.output)
    computed = _computed(candidates, known, graph.constants)
    known |= {name: value for name, value in computed.items() if value.nbytes <= MOST_BYTES}
    kept = tuple(n for n in graph.nodes if graph.goals & set(n.output) or not known.keys() >= set(n.output) - {""})
    kept, goals = _reshapes(kept, graph.shapes, known.keys() | graph.constants.keys())
    known |= goals
    made = {name for node in kept for name in node.output}
    used = {name for node in kept for name in reads(node)} & known.keys() - made - graph.constants.keys()
    folded = {name: numpy_helper.from_array(known[name], name) for name in sorted(used)}
    return replace(graph, nodes=kept, constants={**graph.constants, **folded})


def _shape(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> Array | None:
    """What a Shape node gives, where that is the same for any batch."""
    if node.op_type != "Shape" or (shape := shapes.get(node.input[0])) is None:
        return None
    ends = {a.name: a.i for a in node.attribute}
    part = shape[ends.get("start", 0) : ends.get("end")]
    return np.array(part, np.int64) if all(d >= 0 for d in part) else None


def _reshapes(
    nodes: Sequence[onnx.NodeProto], shapes: Mapping[str, Shape], settled: Collection[str]
) -> tuple[tuple[onnx.NodeProto, ...], dict[str, Array]]:
    """The nodes with Reshapes to shapes that are written down, and those shapes."""
    found, goals = list(nodes), dict[str, Array]()
    for i, node in enumerate(nodes):
        shape = shapes.get(node.output[0], (0,))
        computed = node.op_type == "Reshape" and not node.domain and node.input[1] not in settled
        if computed and sum(d < 0 for d in shape) <= 1 and 0 not in shape:
            found[i] = onnx.NodeProto()
            found[i].CopyFrom(node)
            found[i].input[1] = f"{node.output[0]}.goal"
            goals[found[i].input[1]] = np.array([max(d, -1) for d in shape], np.int64)
    return tuple(found), goals


def _computed(
    nodes: Sequence[onnx.NodeProto], known: Mapping[str, Array], constants: Mapping[str, onnx.TensorProto]
) -> dict[str, Array]:
    """The values of nodes that depend on these alone."""
    used = {name for node in nodes for name in reads(node)}
    given = [numpy_helper.from_array(v, k) for k, v in known.items() if k in used - constants.keys()]
    given += [t for name, t in constants.items() if name in used]
    graph = helper.make_graph(nodes, "constants", [], [], given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    try:
        found = run(model, [], 0) if nodes else {}
    except ModelError:  # onnxruntime says so again, and where, when the plan is tried
        return {}
    return {name: found[name] for node in nodes for name in node.output if name in found}
