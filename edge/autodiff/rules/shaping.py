"""VJP rules of the ops that only move numbers: the gradient is moved back."""

import numpy as np

from fleetgrad.edge.autodiff.graph import Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp


@vjp("Identity")
def identity(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy."""
    return [dy]


def reshaped(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is dy in x's shape."""
    return [g.reshape(dy, g.shapes[node.x[0]], node.x[0])]


for _op, _since in (("Reshape", 5), ("Flatten", 1), ("Squeeze", 1), ("Unsqueeze", 1)):
    vjp(_op, since=_since)(reshaped)


@vjp("Transpose")
def transpose(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is dy under the inverse permutation; the default permutation reverses the axes."""
    rank = len(g.shapes[node.x[0]])
    order = node.attribute("perm", list(range(rank))[::-1])
    return [g.op("Transpose", dy, perm=[int(i) for i in np.argsort(order)])]
