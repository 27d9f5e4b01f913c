"""VJP rules of activation functions: dx = dy f'(x), with f' from the saved output where it can be.

At a kink the slope is torch's: Relu, LeakyRelu, PRelu, Elu and ThresholdedRelu have the left one, Selu and Celu too,
HardSigmoid and Shrink 0, HardSwish 0 at -3 and 1 at 3.
"""

import math

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, flat, vjp

flat("Hardmax")

FLAT_FROM = 30.0  # tanh(softplus(x)) is 1 beyond, to the last bit also of float64, and exp(2x) far from overflow


def _above(g: Builder, x: str, bound: float = 0.0) -> str:
    return g.as_float(g.op("Greater", x, g.constant(bound)))


def _inside(g: Builder, y: str) -> str:
    """1 where 0 < y < 1."""
    return _above(g, g.op("Mul", y, _one_minus(g, y)))


def _one_minus(g: Builder, x: str) -> str:
    return g.op("Sub", g.constant(1.0), x)


def _times(g: Builder, x: str, factor: float) -> str:
    return x if factor == 1.0 else g.op("Mul", x, g.constant(factor))


def _positive(node: Node, name: str, default: float) -> float:
    value = float(node.attribute(name, default))
    if value <= 0:
        raise Unsupported(f"with {name} = {value:g}, which isn't positive")
    return value


@vjp("Relu", since=6)
def relu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where y > 0."""
    if g.native:
        return [g.op("ReluGrad", node.y[0], dy, domain=DOMAIN)]
    return [g.op("Mul", dy, _above(g, node.y[0]))]


@vjp("LeakyRelu", since=6)
def leaky_relu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where x > 0, alpha dy elsewhere."""
    alpha = float(node.attribute("alpha", 0.01))
    signed = node.y[0] if alpha > 0 else node.x[0]  # y has the sign of x, and then x can go
    slope = g.op("Add", _times(g, _above(g, signed), 1 - alpha), g.constant(alpha))
    return [g.op("Mul", dy, slope)]


@vjp("PRelu", since=9)
def prelu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where x > 0, slope dy elsewhere; dslope = dy min(x, 0), summed over what was broadcast."""
    x, slope = node.x
    dx = dslope = None
    if node.need(0):
        above = _above(g, x)
        dx = g.op("Mul", dy, g.op("Add", above, g.op("Mul", _one_minus(g, above), slope)))
    if node.need(1):
        dslope = g.sum_to(g.op("Mul", dy, g.op("Min", x, g.constant(0.0))), g.shapes[node.y[0]], slope)
    return [dx, dslope]


@vjp("ThresholdedRelu", since=10)
def thresholded_relu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where x > alpha."""
    alpha = float(node.attribute("alpha", 1.0))
    return [g.op("Mul", dy, _above(g, node.y[0]) if alpha >= 0 else _above(g, node.x[0], alpha))]


@vjp("Shrink", since=9)
def shrink(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where |x| > lambd."""
    lambd = float(node.attribute("lambd", 0.5))
    if lambd < 0:
        raise Unsupported(f"with lambd = {lambd:g}, which is negative")
    return [g.op("Mul", dy, _above(g, g.op("Abs", node.x[0]), lambd))]


def _exponential(g: Builder, node: Node, dy: str, scale: float, alpha: float) -> str:
    """y = scale x above 0 and scale alpha (exp(x) - 1) below, where its slope is y + scale alpha."""
    low = scale * alpha
    slope = g.op("Add", g.op("Min", node.y[0], g.constant(0.0)), g.constant(low))
    if low != scale:
        slope = g.op("Add", slope, _times(g, _above(g, node.y[0]), scale - low))
    return g.op("Mul", dy, slope)


@vjp("Elu", since=6)
def elu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where x > 0, dy (y + alpha) elsewhere."""
    return [_exponential(g, node, dy, 1.0, _positive(node, "alpha", 1.0))]


@vjp("Selu", since=6)
def selu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = gamma dy where x > 0, dy (y + gamma alpha) elsewhere."""
    gamma, alpha = (
        _positive(node, "gamma", 1.05070102214813232421875),
        _positive(node, "alpha", 1.67326319217681884765625),
    )
    return [_exponential(g, node, dy, gamma, alpha)]


@vjp("Celu", since=12)
def celu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where x > 0, dy (y / alpha + 1) elsewhere."""
    low = _times(g, g.op("Min", node.y[0], g.constant(0.0)), 1 / _positive(node, "alpha", 1.0))
    return [g.op("Mul", dy, g.op("Add", low, g.constant(1.0)))]


@vjp("Sigmoid", since=6)
def sigmoid(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy y (1 - y)."""
    return [g.op("Mul", dy, g.op("Mul", node.y[0], _one_minus(g, node.y[0])))]


@vjp("HardSigmoid", since=6)
def hard_sigmoid(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = alpha dy where 0 < y < 1."""
    return [g.op("Mul", dy, _times(g, _inside(g, node.y[0]), float(node.attribute("alpha", 0.2))))]


@vjp("HardSwish", since=14)
def hard_swish(g: Builder, node: Node, dy: str) -> Gradients:
    """y = x h with h = HardSigmoid(x): f' = h + x / 6 where 0 < h < 1."""
    x = node.x[0]
    h = g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    return [g.op("Mul", dy, g.op("Add", h, g.op("Mul", _times(g, x, 1 / 6), _inside(g, h))))]


@vjp("Mish", since=18)
def mish(g: Builder, node: Node, dy: str) -> Gradients:
    """y = x t with t = tanh(softplus(x)) = n / (n + 2), n = e^x (e^x + 2): f' = t + x sigmoid(x) (1 - t^2).

    The forward pass keeps t; the op itself takes twelve times as long.
    """
    x = node.x[0]
    with g.instead(node) as y:
        e = g.op("Exp", g.op("Min", x, g.constant(FLAT_FROM)))
        n = g.op("Mul", e, g.op("Add", e, g.constant(2.0)))
        t = g.op("Div", n, g.op("Add", n, g.constant(2.0)))
        y.append(g.op("Mul", x, t))
    rest = g.op("Mul", g.op("Mul", x, g.op("Sigmoid", x)), _one_minus(g, g.op("Mul", t, t)))
    return [g.op("Mul", dy, g.op("Add", t, rest))]


@vjp("Softplus", since=1)
def softplus(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy sigmoid(x).

    The forward pass becomes max(x, 0) + log(1 + e), e = exp(-|x|), as the op takes three times as long. With u = 1 + e
    rounded, e log(u) / (u - 1) is that logarithm also where e is lost in u (Kahan's log1p).
    """
    x = node.x[0]
    with g.instead(node) as y:
        e = g.op("Exp", g.op("Neg", g.op("Abs", x)))
        u = g.op("Add", e, g.constant(1.0))
        added = g.op("Sub", u, g.constant(1.0))
        lost = g.as_float(g.op("Equal", added, g.constant(0.0)))
        slope = g.op("Div", g.op("Add", g.op("Log", u), lost), g.op("Add", added, lost))
        y.append(g.op("Add", g.op("Relu", x), g.op("Mul", e, slope)))
    return [g.op("Mul", dy, g.op("Sigmoid", node.x[0]))]


@vjp("Softsign", since=1)
def softsign(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / (1 + |x|)^2."""
    below = g.op("Add", g.op("Abs", node.x[0]), g.constant(1.0))
    return [g.op("Div", dy, g.op("Mul", below, below))]


@vjp("Tanh", since=6)
def tanh(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy (1 - y^2)."""
    return [g.op("Mul", dy, _one_minus(g, g.op("Mul", node.y[0], node.y[0])))]


@vjp("Erf", since=9)
def erf(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy 2 / sqrt(pi) exp(-x^2)."""
    bell = g.op("Exp", g.op("Neg", g.op("Mul", node.x[0], node.x[0])))
    return [g.op("Mul", dy, _times(g, bell, 2 / math.sqrt(math.pi)))]


@vjp("Gelu", since=20)
def gelu(g: Builder, node: Node, dy: str) -> Gradients:
    """y = x p: f' = p + x p', p the normal distribution's function, or (1 + tanh(c (x + a x^3))) / 2 for it."""
    x = node.x[0]
    square = g.op("Mul", x, x)
    if node.attribute("approximate", "none") == "tanh":
        a, c = 0.044715, math.sqrt(2 / math.pi)
        inner = g.op("Mul", x, g.op("Add", _times(g, square, a * c), g.constant(c)))
        t = g.op("Tanh", inner)
        slope = g.op("Add", _times(g, square, 1.5 * a * c), g.constant(0.5 * c))
        density = g.op("Mul", _one_minus(g, g.op("Mul", t, t)), slope)
    else:
        t = g.op("Erf", _times(g, x, math.sqrt(0.5)))
        density = _times(g, g.op("Exp", _times(g, square, -0.5)), 1 / math.sqrt(2 * math.pi))
    p = g.op("Add", _times(g, t, 0.5), g.constant(0.5))
    return [g.op("Mul", dy, g.op("Add", p, g.op("Mul", x, density)))]


@vjp("Softmax", since=13)
def softmax(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = y (dy - sum(y dy)), the sum along the op's axis."""
    product = g.op("Mul", dy, node.y[0])
    along = g.total(product, node.attribute("axis", -1), keep=True)
    return [g.op("Sub", product, g.op("Mul", node.y[0], along))]


@vjp("LogSoftmax", since=13)
def log_softmax(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy - exp(y) sum(dy), the sum along the op's axis."""
    along = g.total(dy, node.attribute("axis", -1), keep=True)
    return [g.op("Sub", dy, g.op("Mul", g.op("Exp", node.y[0]), along))]
