"""Nodes that change nothing: Identity, and the first of two that move entries one after the other.

Identity(x) -> x     Reshape(Reshape(x, a), b) -> Reshape(x, b)     Transpose(Transpose(x)) -> Transpose(x), or x itself
"""

from collections.abc import Mapping
from dataclasses import replace

import onnx
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff.passes.graph import Graph, renamed


def remove(graph: Graph) -> Graph:
    """Lets readers of a value read the one that it is made of."""
    held, names, kept = graph.held, dict[str, str](), list[onnx.NodeProto]()
    makers = dict[str, onnx.NodeProto]()
    for original in graph.nodes:
        node = _shortened(renamed(original, names), makers, graph.constants)
        if _changes_nothing(node) and node.output[0] not in held:
            names[node.output[0]] = node.input[0]
            continue
        makers.update((name, node) for name in node.output)
        kept.append(node)
    # What a goal is an Identity of takes the goal's name, unless another goal did.
    made = makers.keys() - held
    names = {n.input[0]: n.output[0] for n in kept if _is(n, "Identity") and n.input[0] in made}
    kept = [n for n in kept if not (_is(n, "Identity") and names.get(n.input[0]) == n.output[0])]
    return replace(graph, nodes=tuple(renamed(n, names) for n in kept))


def _is(node: onnx.NodeProto, op: str) -> bool:
    return node.op_type == op and not node.domain


def perm(node: onnx.NodeProto) -> list[int]:
    """A Transpose's order of axes; nothing where it doesn't say."""
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), [])


def _changes_nothing(node: onnx.NodeProto) -> bool:
    order = perm(node)
    return _is(node, "Identity") or (_is(node, "Transpose") and order != [] and order == sorted(order))


def _shortened(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> onnx.NodeProto:
    """The node on its input's input, where the node between is of its kind."""
    before = makers.get(node.input[0]) if node.input else None
    if before is None or node.domain or before.domain or node.op_type != before.op_type:
        return node
    found = onnx.NodeProto()
    found.CopyFrom(node)
    found.input[0] = before.input[0]
    if _is(node, "Transpose") and perm(node) and perm(before):
        del found.attribute[:]
        found.attribute.append(helper.make_attribute("perm", [perm(before)[i] for i in perm(node)]))
        return found
    if _is(node, "Reshape") and (shape := constants.get(node.input[1])) is not None:
        return node if 0 in numpy_helper.to_array(shape) else found  # 0 is the size that the input has there
    return node
