"""VJP rules of the trigonometric and hyperbolic functions and their inverses."""

from fleetgrad.edge.autodiff.graph import Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp


def _one_plus_square(g: Builder, x: str, sign: str = "Add") -> str:
    return g.op(sign, g.constant(1.0), g.op("Mul", x, x))


@vjp("Sin", since=7)
def sin(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy cos(x)."""
    return [g.op("Mul", dy, g.op("Cos", node.x[0]))]


@vjp("Cos", since=7)
def cos(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = -dy sin(x)."""
    return [g.op("Neg", g.op("Mul", dy, g.op("Sin", node.x[0])))]


@vjp("Tan", since=7)
def tan(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy (1 + y^2)."""
    return [g.op("Mul", dy, _one_plus_square(g, node.y[0]))]


@vjp("Asin", since=7)
def asin(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / sqrt(1 - x^2)."""
    return [g.op("Div", dy, g.op("Sqrt", _one_plus_square(g, node.x[0], "Sub")))]


@vjp("Acos", since=7)
def acos(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = -dy / sqrt(1 - x^2)."""
    return [g.op("Neg", g.op("Div", dy, g.op("Sqrt", _one_plus_square(g, node.x[0], "Sub"))))]


@vjp("Atan", since=7)
def atan(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / (1 + x^2)."""
    return [g.op("Div", dy, _one_plus_square(g, node.x[0]))]


@vjp("Sinh", since=9)
def sinh(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy cosh(x)."""
    return [g.op("Mul", dy, g.op("Cosh", node.x[0]))]


@vjp("Cosh", since=9)
def cosh(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy sinh(x)."""
    return [g.op("Mul", dy, g.op("Sinh", node.x[0]))]


@vjp("Asinh", since=9)
def asinh(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / sqrt(1 + x^2)."""
    return [g.op("Div", dy, g.op("Sqrt", _one_plus_square(g, node.x[0])))]


@vjp("Acosh", since=9)
def acosh(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / sqrt(x^2 - 1)."""
    return [g.op("Div", dy, g.op("Sqrt", g.op("Sub", g.op("Mul", node.x[0], node.x[0]), g.constant(1.0))))]


@vjp("Atanh", since=9)
def atanh(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / (1 - x^2)."""
    return [g.op("Div", dy, _one_plus_square(g, node.x[0], "Sub"))]
