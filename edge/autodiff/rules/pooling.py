"""VJP rules of pooling. Windows that tile the input are undone by Resize; others go tap by tap through Col2Im.

Equal maxima of a window share its gradient in equal parts, so that its sum is kept (a constant background patch has
several); the C core's MaxPool gives it to the first, as torch does. Indices of MaxPool are never used: that form of the op
takes seven times as long.
"""

import math
from typing import Any

import numpy as np

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import DOMAIN, Array, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp
from fleetgrad.edge.autodiff.rules.windows import Windows, windows

LOWEST = -3.0e38  # pads a maximum: below any activation, and finite
TINY = 1e-30  # keeps a quotient finite; float32 has it
MOST_TAPS = 256  # of the C core's MaxPool: a tap's number is a byte


@vjp("MaxPool", since=8)
def max_pool(g: Builder, node: Node, dy: str, *indices: str | None) -> Gradients:
    """The gradient goes to the maximum of each window."""
    w = windows(g, node, tuple(node.attribute("kernel_shape", [])))
    x, y = node.x[0], node.y[0]
    if g.native and len(w.x) <= 2 and w.taps <= MOST_TAPS and not any(node.y[1:]):
        with g.instead(node) as outputs:
            outputs += g.ops("MaxPool", x, outputs=2, domain=DOMAIN, **_attributes(node, w))
        how = {**_attributes(node, w), "input_shape": w.x}
        return [g.op("MaxPoolArgmaxGrad", outputs[1], dy, domain=DOMAIN, **how)]
    image = w.fit(g, x, LOWEST)
    if w.tiles:
        mask = g.as_float(g.op("Equal", image, _spread(g, y, w)))
        count = g.op(
            "Mul", g.op("AveragePool", mask, kernel_shape=w.kernel, strides=w.stride), g.constant(float(w.taps))
        )
        return [w.unfit(g, g.op("Mul", mask, _spread(g, g.op("Div", dy, count), w)))]
    masks = [g.as_float(g.op("Equal", w.tap(g, image, offset), y)) for offset in w.each()]
    share = g.op("Div", dy, g.op("Sum", *masks))
    return [_scatter(g, node, [g.op("Mul", mask, share) for mask in masks], w)]


@vjp("AveragePool", since=7)
def average_pool(g: Builder, node: Node, dy: str) -> Gradients:
    """Each input of a window gets the gradient divided by the number of inputs that were averaged."""
    w = windows(g, node, tuple(node.attribute("kernel_shape", [])))
    include = node.attribute("count_include_pad", 0)
    if g.native and len(w.x) <= 2 and not w.tiles:
        how = {**_attributes(node, w), "input_shape": w.x, "count_include_pad": include}
        return [g.op("AveragePoolGrad", dy, domain=DOMAIN, **how)]
    share = g.op("Mul", dy, g.constant(1.0 / _counts(w, include)))
    return [_shared_out(g, node, share, w)]


@vjp("LpPool", since=18)
def lp_pool(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = sign(x) |x|^(p - 1) times the sum of dy y^(1 - p) over the windows; 0 from a window of zeros."""
    w = windows(g, node, tuple(node.attribute("kernel_shape", [])))
    share, slope = _lp(g, node, dy)
    return [g.op("Mul", slope, _shared_out(g, node, share, w))]


@vjp("GlobalLpPool")
def global_lp_pool(g: Builder, node: Node, dy: str) -> Gradients:
    """As LpPool with one window."""
    share, slope = _lp(g, node, dy)
    return [g.op("Mul", slope, share)]


def _lp(g: Builder, node: Node, dy: str) -> tuple[str, str]:
    x, y, p = node.x[0], node.y[0], node.attribute("p", 2)
    share = dy
    for _ in range(p - 1):
        share = g.op("Div", share, g.op("Max", y, g.constant(TINY ** (1 / (p - 1)))))
    if p == 2:
        return share, x
    return share, g.op("Mul", g.op("Sign", x), g.op("Pow", g.op("Abs", x), g.constant(p - 1.0)))


@vjp("GlobalMaxPool")
def global_max_pool(g: Builder, node: Node, dy: str) -> Gradients:
    """Equal maxima share the gradient, as torch's amax has it (its adaptive_max_pool takes the first)."""
    mask = g.as_float(g.op("Equal", node.x[0], node.y[0]))
    count = g.total(mask, *range(2, len(g.shapes[node.x[0]])), keep=True)
    return [g.op("Mul", mask, g.op("Div", dy, count))]


@vjp("GlobalAveragePool")
def global_average_pool(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / positions, everywhere."""
    size = g.shapes[node.x[0]][2:]
    if min(size, default=1) < 1:
        raise Unsupported(f"needs a spatial size that is fixed, has {size}")
    return [g.op("Mul", dy, g.constant(np.full((1, 1, *size), 1.0 / math.prod(size))))]


def _attributes(node: Node, w: Windows) -> dict[str, Any]:
    """The geometry for the C core, which knows no auto_pad."""
    pads, ceil = [*w.before, *w.after], node.attribute("ceil_mode", 0)
    return {"kernel_shape": w.kernel, "strides": w.stride, "dilations": w.dilation, "pads": pads, "ceil_mode": ceil}


def _spread(g: Builder, x: str, w: Windows) -> str:
    """x with every value repeated over its window."""
    scales = g.constant([1.0, 1.0, *w.stride], np.float32)
    return g.op(
        "Resize", x, "", scales, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    )


def _counts(w: Windows, include: int) -> Array:
    """How many inputs, or with `include` positions of the padded plane, each window sees; shape [1, 1, *y]."""
    counts = np.ones((1, 1, *(1 for _ in w.y)))
    each = zip(w.x, w.y, w.kernel, w.stride, w.dilation, w.before, w.after, strict=True)
    for axis, (n, y, k, s, d, b, a) in enumerate(each):
        at = np.arange(y)[:, None] * s + np.arange(k)[None, :] * d - b
        line = ((at >= (-b if include else 0)) & (at < n + (a if include else 0))).sum(1)
        counts = counts * line.reshape([-1 if i == axis + 2 else 1 for i in range(counts.ndim)])
    return counts


def _shared_out(g: Builder, node: Node, share: str, w: Windows) -> str:
    """Every input's sum of the shares of its windows."""
    if w.tiles:
        return w.unfit(g, _spread(g, share, w))
    return _scatter(g, node, [share] * w.taps, w)


def _scatter(g: Builder, node: Node, taps: list[str], w: Windows) -> str:
    """Adds what each tap gives to where it was taken from."""
    channels = g.shapes[node.x[0]][1]
    positions = math.prod(w.y)
    parts = [g.reshape(tap, (-1, channels, 1, positions)) for tap in taps]
    columns = g.reshape(g.op("Concat", *parts, axis=2), (-1, channels * w.taps, positions))
    image = g.op(
        "Col2Im", columns, g.integers(*w.covered), g.integers(*w.kernel), strides=w.stride, dilations=w.dilation
    )
    return w.unfit(g, image)
