"""VJP rules of the elementwise arithmetic ops; those with several inputs sum over the dimensions that were broadcast.

Masks are multiplied by, as Where takes onnxruntime's CPU kernel 20 times as long. Kinks are as in torch: Abs has 0 at 0,
equal inputs of Max and Min share the gradient, and Clip stops it at its bounds, as relu6 and hardtanh do (clamp doesn't).
"""

from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, flat, vjp

flat("Sign", "Floor", "Ceil", "Round")


def back(g: Builder, node: Node, i: int, gradient: str) -> str:
    """A gradient of the output's shape, summed to the shape of input i."""
    return g.sum_to(gradient, g.shapes[node.y[0]], node.x[i])


@vjp("Add", since=7)
def add(g: Builder, node: Node, dy: str) -> Gradients:
    """d(a + b) = da + db."""
    return [back(g, node, i, dy) if node.need(i) else None for i in (0, 1)]


@vjp("Sub", since=7)
def sub(g: Builder, node: Node, dy: str) -> Gradients:
    """d(a - b) = da - db."""
    return [
        back(g, node, 0, dy) if node.need(0) else None,
        g.op("Neg", back(g, node, 1, dy)) if node.need(1) else None,
    ]


@vjp("Mul", since=7)
def mul(g: Builder, node: Node, dy: str) -> Gradients:
    """d(ab) = b da + a db."""
    return [back(g, node, i, g.op("Mul", dy, node.x[1 - i])) if node.need(i) else None for i in (0, 1)]


@vjp("Div", since=7)
def div(g: Builder, node: Node, dy: str) -> Gradients:
    """d(a/b) = da/b - (a/b) db/b."""
    scaled = g.op("Div", dy, node.x[1])
    return [
        back(g, node, 0, scaled) if node.need(0) else None,
        g.op("Neg", back(g, node, 1, g.op("Mul", scaled, node.y[0]))) if node.need(1) else None,
    ]


@vjp("Sum", since=8)
def sum_(g: Builder, node: Node, dy: str) -> Gradients:
    """Each term gets dy."""
    return [back(g, node, i, dy) if node.need(i) else None for i in range(len(node.x))]


@vjp("Mean", since=8)
def mean(g: Builder, node: Node, dy: str) -> Gradients:
    """Each of n terms gets dy / n."""
    share = g.op("Mul", dy, g.constant(1.0 / len(node.x)))
    return [back(g, node, i, share) if node.need(i) else None for i in range(len(node.x))]


def _extreme(g: Builder, node: Node, dy: str) -> Gradients:
    """The gradient goes to the inputs that equal the output, in equal parts."""
    masks = [g.as_float(g.op("Equal", x, node.y[0])) for x in node.x]
    share = g.op("Div", dy, g.op("Sum", *masks))
    return [back(g, node, i, g.op("Mul", mask, share)) if node.need(i) else None for i, mask in enumerate(masks)]


vjp("Max", since=8)(_extreme)
vjp("Min", since=8)(_extreme)


@vjp("Pow", since=7)
def pow_(g: Builder, node: Node, dy: str) -> Gradients:
    """d(x^e) = e x^(e-1) dx + x^e log(x) de; as in torch 0 for dx where e = 0, and 0 for de where x = 0 and e >= 0."""
    x, e = node.x
    dx = de = None
    if node.need(0):
        known = g.known.get(e)
        if known is not None and known.size == 1:
            dx = _power(g, node, dy, float(known.ravel()[0]))
        else:
            exponent = g.as_float(e)
            # x^e instead of x^(e-1) where e = 0: the factor e makes 0 of it, and not of an infinity.
            lower = g.op("Sub", exponent, g.as_float(g.op("Not", g.op("Equal", exponent, g.constant(0.0)))))
            dx = g.op("Mul", dy, g.op("Mul", exponent, g.op("Pow", x, lower)))
        dx = back(g, node, 0, dx)
    if node.need(1):
        zero = g.as_float(g.op("Equal", x, g.constant(0.0)))
        de = back(g, node, 1, g.op("Mul", dy, g.op("Mul", node.y[0], g.op("Log", g.op("Add", x, zero)))))
    return [dx, de]


def _power(g: Builder, node: Node, dy: str, e: float) -> str:
    """dy e x^(e-1) without Pow, which is slow for exponents but 2 and 3."""
    x, y = node.x[0], node.y[0]
    if e == 1:
        return dy
    if e in {2, 3}:
        return g.op("Mul", dy, g.op("Mul", g.constant(e), x if e == 2 else g.op("Mul", x, x)))
    if e == 0.5:
        return g.op("Div", g.op("Mul", dy, g.constant(e)), y)
    if e > 1:
        zero = g.as_float(g.op("Equal", x, g.constant(0.0)))
        lower = g.op("Div", y, g.op("Add", x, zero))
    else:
        lower = g.op("Pow", x, g.constant(e - 1 if e else 0.0))
    return g.op("Mul", dy, g.op("Mul", g.constant(e), lower))


@vjp("Mod", since=10)
def mod(g: Builder, node: Node, dy: str) -> Gradients:
    """d(a - q b) = da - q db, where q is the whole number that the op takes off."""
    a, b = node.x
    da = back(g, node, 0, dy) if node.need(0) else None
    db = None
    if node.need(1):
        whole = g.op("Round", g.op("Div", g.op("Sub", a, node.y[0]), b))
        db = g.op("Neg", back(g, node, 1, g.op("Mul", dy, whole)))
    return [da, db]


@vjp("Where", since=9)
def where(g: Builder, node: Node, dy: str) -> Gradients:
    """The gradient goes to the input that was taken."""
    dx = dz = None
    if node.need(1):
        dx = back(g, node, 1, g.op("Mul", dy, g.as_float(node.x[0])))
    if node.need(2):
        dz = back(g, node, 2, g.op("Mul", dy, g.as_float(g.op("Not", node.x[0]))))
    return [None, dx, dz]


@vjp("Clip", since=11)
def clip(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where y is between the bounds, so that x need not be kept; a bound gets the gradient of what is beyond it."""
    x, y = node.x[0], node.y[0]
    if g.native and not node.need(1) and not node.need(2):
        return [g.op("ClipGrad", y, dy, *node.x[1:], domain=DOMAIN, inclusive=0)]
    dx = None
    if node.need(0):
        inside = [g.op(kind, y, bound) for kind, bound in zip(("Greater", "Less"), node.x[1:], strict=False) if bound]
        mask = g.op("And", *inside) if len(inside) == 2 else inside[0] if inside else ""
        dx = g.op("Mul", dy, g.as_float(mask)) if mask else dy
    bounds = [
        g.op("ReduceSum", g.op("Mul", dy, g.as_float(g.op(kind, x, y))), keepdims=0) if node.need(i) else None
        for i, kind in ((1, "Less"), (2, "Greater"))
    ]
    return [dx, *bounds][: len(node.x)]


@vjp("Cast", since=6)
def cast(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy; only casts between float types come here, as no gradient flows through others."""
    return [g.as_float(dy)]


@vjp("CastLike", since=15)
def cast_like(g: Builder, node: Node, dy: str) -> Gradients:
    """As Cast; the input that gives the type gets nothing."""
    return [g.as_float(dy), None]


@vjp("Abs", since=6)
def abs_(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy sign(x)."""
    return [g.op("Mul", dy, g.op("Sign", node.x[0]))]


@vjp("Neg", since=6)
def neg(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = -dy."""
    return [g.op("Neg", dy)]


@vjp("Exp", since=6)
def exp(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy y."""
    return [g.op("Mul", dy, node.y[0])]


@vjp("Log", since=6)
def log(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / x."""
    return [g.op("Div", dy, node.x[0])]


@vjp("Sqrt", since=6)
def sqrt(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / 2y."""
    return [g.op("Div", g.op("Mul", dy, g.constant(0.5)), node.y[0])]


@vjp("Reciprocal", since=6)
def reciprocal(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = -dy y^2."""
    return [g.op("Neg", g.op("Mul", dy, g.op("Mul", node.y[0], node.y[0])))]
