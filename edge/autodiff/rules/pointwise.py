"""VJP rules of the elementwise ops; those with two inputs sum over the dimensions that were broadcast."""

import numpy as np

from fleetgrad.edge.autodiff.graph import Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, flat, vjp

flat("Sign", "Floor", "Ceil", "Round")


def _back(g: Builder, node: Node, i: int, gradient: str) -> str:
    return g.sum_to(gradient, g.shapes[node.y[0]], node.x[i])


@vjp("Add", since=7)
def add(g: Builder, node: Node, dy: str) -> Gradients:
    """d(a + b) = da + db."""
    return [_back(g, node, i, dy) if node.need(i) else None for i in (0, 1)]


@vjp("Sub", since=7)
def sub(g: Builder, node: Node, dy: str) -> Gradients:
    """d(a - b) = da - db."""
    return [
        _back(g, node, 0, dy) if node.need(0) else None,
        g.op("Neg", _back(g, node, 1, dy)) if node.need(1) else None,
    ]


@vjp("Mul", since=7)
def mul(g: Builder, node: Node, dy: str) -> Gradients:
    """d(ab) = b da + a db."""
    return [_back(g, node, i, g.op("Mul", dy, node.x[1 - i])) if node.need(i) else None for i in (0, 1)]


@vjp("Div", since=7)
def div(g: Builder, node: Node, dy: str) -> Gradients:
    """d(a/b) = da/b - (a/b) db/b."""
    scaled = g.op("Div", dy, node.x[1])
    return [
        _back(g, node, 0, scaled) if node.need(0) else None,
        g.op("Neg", _back(g, node, 1, g.op("Mul", scaled, node.y[0]))) if node.need(1) else None,
    ]


@vjp("Relu", since=6)
def relu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where y > 0. Greater, Cast, Mul: a fifth of the time that Where with a scalar takes."""
    kind = 11 if g.dtype is np.float64 else 1
    return [g.op("Mul", dy, g.op("Cast", g.op("Greater", node.y[0], g.constant(0.0)), to=kind))]


@vjp("Sigmoid", since=6)
def sigmoid(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy y (1 - y)."""
    return [g.op("Mul", dy, g.op("Mul", node.y[0], g.op("Sub", g.constant(1.0), node.y[0])))]


@vjp("Tanh", since=6)
def tanh(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy (1 - y^2)."""
    return [g.op("Mul", dy, g.op("Sub", g.constant(1.0), g.op("Mul", node.y[0], node.y[0])))]


@vjp("Softmax", since=13)
def softmax(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = y (dy - sum(y dy)), the sum along the op's axis."""
    product = g.op("Mul", dy, node.y[0])
    along = g.total(product, node.attribute("axis", -1), keep=True)
    return [g.op("Sub", product, g.op("Mul", node.y[0], along))]
