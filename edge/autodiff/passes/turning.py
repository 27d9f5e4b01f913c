"""A weight gradient that is transposed becomes the product of its operands the other way round.

    Transpose(X^T dY) = dY^T X     as a Gemm, and as MatMulWeightGrad

torch transposes a dense layer's weight where it uses it, so that each of its gradients would be transposed back.
"""

from collections import Counter
from dataclasses import replace

import onnx

from fleetgrad.edge.autodiff.graph import DOMAIN
from fleetgrad.edge.autodiff.passes.graph import Graph
from fleetgrad.edge.autodiff.passes.removing import perm
from fleetgrad.edge.autodiff.registry import reads


def turn(graph: Graph) -> Graph:
    """Swaps the operands of products that nothing but a Transpose reads."""
    uses = Counter(name for node in graph.nodes for name in reads(node))
    makers = {n.output[0]: i for i, n in enumerate(graph.nodes) if _is_weight_gradient(n)}
    nodes: list[onnx.NodeProto | None] = list(graph.nodes)
    for i, node in enumerate(graph.nodes):
        source = node.input[0] if node.op_type == "Transpose" and not node.domain and perm(node) == [1, 0] else ""
        if source in makers and uses[source] == 1 and source not in graph.goals:
            turned = onnx.NodeProto()
            turned.CopyFrom(graph.nodes[makers[source]])
            turned.input[:] = [turned.input[1], turned.input[0]]
            turned.output[0] = node.output[0]
            nodes[makers[source]], nodes[i] = turned, None
    return replace(graph, nodes=tuple(n for n in nodes if n is not None))


def _is_weight_gradient(node: onnx.NodeProto) -> bool:
    """A product X^T dY with nothing more: no scales of an int8 X, no sum that it adds to, no sums of X."""
    if len(node.input) != 2 or len(node.output) != 1:
        return False
    attributes = {a.name: a for a in node.attribute}
    gemm = node.op_type == "Gemm" and not node.domain
    return (node.op_type == "MatMulWeightGrad" and node.domain == DOMAIN) or (
        gemm and attributes.keys() == {"transA"} and attributes["transA"].i == 1
    )
