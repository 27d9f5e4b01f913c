"""VJP rules of the reductions over axes, and of the scans and selections along one.

The output's gradient is brought back to one entry per reduced group and broadcast: in the formulas y and dy are that.
Without axes everything is reduced, or with noop_with_empty_axes nothing: then the formulas hold number by number.
As in torch, equal maxima (and minima) share the gradient, and the L2 norm has gradient 0 where it is 0.
"""

import math

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp


def _axes(g: Builder, node: Node) -> str:
    """The name of the axes; '' where all are reduced, or none."""
    given = node.x[1] if len(node.x) > 1 else ""
    return "" if given and g.shapes[given] == (0,) else given


def _idle(g: Builder, node: Node) -> bool:
    return not _axes(g, node) and bool(node.attribute("noop_with_empty_axes", 0))


def _kept(g: Builder, node: Node, value: str) -> str:
    """A value of the output's shape, with the dimensions that were reduced as ones; a scalar broadcasts as it is."""
    axes = _axes(g, node)
    return g.op("Unsqueeze", value, axes) if axes and not node.attribute("keepdims", 1) else value


def _group(g: Builder, node: Node, value: str) -> str:
    """The sum over the reduced axes, which are kept as ones."""
    axes = _axes(g, node)
    return g.op("ReduceSum", value, axes, keepdims=1) if axes else g.op("ReduceSum", value, keepdims=1)


def _spread(g: Builder, node: Node, value: str) -> str:
    """A kept value, once for every number of the input."""
    return value if _idle(g, node) else g.op("Expand", value, g.op("Shape", node.x[0]))


@vjp("ReduceSum", since=13)
def reduce_sum(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy."""
    return [_spread(g, node, _kept(g, node, dy)), None]


@vjp("ReduceMean", since=18)
def reduce_mean(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / n, n the size of a group."""
    if _idle(g, node):
        return [dy, None]
    x, y = g.shapes[node.x[0]], g.shapes[node.y[0]]
    if sum(d < 0 for d in x) == sum(d < 0 for d in y):
        share = g.op("Mul", dy, g.constant(abs(math.prod(y)) / abs(math.prod(x))))
    else:
        sizes = [g.as_float(g.op("Size", name)) for name in (node.x[0], node.y[0])]
        share = g.op("Div", dy, g.op("Div", *sizes))
    return [_spread(g, node, _kept(g, node, share)), None]


def _extreme(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / n where x = y, n of which a group has."""
    if _idle(g, node):
        return [dy, None]
    mask = g.as_float(g.op("Equal", node.x[0], _kept(g, node, node.y[0])))
    return [g.op("Mul", mask, g.op("Div", _kept(g, node, dy), _group(g, node, mask))), None]


vjp("ReduceMax", since=18)(_extreme)
vjp("ReduceMin", since=18)(_extreme)


@vjp("ReduceProd", since=18)
def reduce_prod(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy times the product of the others: p / x' where the others have no zero, else 0.

    x' is x with 1 for zeros, p the product of x'. The others have none where the group has as many zeros as x is.
    """
    if _idle(g, node):
        return [dy, None]
    x, axes = node.x[0], _axes(g, node)
    zero = g.as_float(g.op("Equal", x, g.constant(0.0)))
    full = g.op("Add", x, zero)
    p = g.op("ReduceProd", full, axes, keepdims=1) if axes else g.op("ReduceProd", full, keepdims=1)
    others = g.op("Div", g.op("Mul", _kept(g, node, dy), p), full)
    return [g.op("Mul", others, g.as_float(g.op("Equal", zero, _group(g, node, zero)))), None]


@vjp("ReduceL1", since=18)
def reduce_l1(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy sign(x)."""
    return [g.op("Mul", _kept(g, node, dy), g.op("Sign", node.x[0])), None]


@vjp("ReduceL2", since=18)
def reduce_l2(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy x / y, and 0 where y = 0."""
    y = node.y[0]
    norm = g.op("Add", y, g.as_float(g.op("Equal", y, g.constant(0.0))))
    return [g.op("Mul", node.x[0], _kept(g, node, g.op("Div", dy, norm))), None]


@vjp("ReduceSumSquare", since=18)
def reduce_sum_square(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = 2 dy x."""
    return [g.op("Mul", node.x[0], _kept(g, node, g.op("Mul", dy, g.constant(2.0)))), None]


@vjp("ReduceLogSum", since=18)
def reduce_log_sum(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / sum(x), and the sum is exp(y)."""
    share = g.op("Mul", dy, g.op("Exp", g.op("Neg", node.y[0])))
    return [_spread(g, node, _kept(g, node, share)), None]


@vjp("ReduceLogSumExp", since=18)
def reduce_log_sum_exp(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy exp(x - y)."""
    share = g.op("Exp", g.op("Sub", node.x[0], _kept(g, node, node.y[0])))
    return [g.op("Mul", _kept(g, node, dy), share), None]


@vjp("CumSum", since=11)
def cum_sum(g: Builder, node: Node, dy: str) -> Gradients:
    """The cumulative sum of dy from the other end."""
    reverse, exclusive = node.attribute("reverse", 0), node.attribute("exclusive", 0)
    return [g.op("CumSum", dy, node.x[1], reverse=1 - reverse, exclusive=exclusive), None]


@vjp("TopK", since=11)
def top_k(g: Builder, node: Node, dy: str | None, indices: str | None = None) -> Gradients:
    """The gradient goes to the values that were taken."""
    if dy is None:
        return [None, None]
    zeros = g.op("Expand", g.constant(0.0), g.op("Shape", node.x[0]))
    return [g.op("ScatterElements", zeros, node.y[1], dy, axis=node.attribute("axis", -1)), None]


@vjp("Dropout", since=12)
def dropout(g: Builder, node: Node, dy: str, mask: str | None = None) -> Gradients:
    """dx = dy: in inference mode the op does nothing."""
    training = g.known.get(node.x[2]) if len(node.x) > 2 and node.x[2] else False
    if training is None or bool(training):
        raise Unsupported(
            "in training mode with masks that can't be fed: its second output is used, its ratio isn't constant, or the "
            "batch isn't one of its dimensions; export the model with model.eval()"
        )
    return [dy, None, None][: len(node.x)]
